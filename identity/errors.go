package identity

import "errors"

// Outcomes that callers tell apart with errors.Is.
var (
	// ErrMember refuses to found or join from a folder that has a cluster.
	ErrMember = errors.New("this node is already a member of a cluster")
	// ErrWrongToken says that the cluster was found and does not know the
	// token's secret.
	ErrWrongToken = errors.New("the cluster does not accept this token: ask for a new one with `conclave token`")
	// ErrNameTaken says that the name belongs to another node. Admit returns
	// it too.
	ErrNameTaken = errors.New("the name belongs to another live node: choose one with --name")
	// ErrRefused says that a node may not renew: it was removed.
	ErrRefused = errors.New("the cluster no longer knows this node")
	// ErrOtherCluster says that an address answered with another cluster's CA.
	ErrOtherCluster = errors.New("another cluster answered: its CA is not the one that the token names")
	// ErrUnreachable says that no address answered at all.
	ErrUnreachable = errors.New("nobody answered")
)

// What is wrong with the text of a token.
var (
	ErrTokenForm      = errors.New("this is not a join token: one begins with " + tokenPrefix)
	ErrTokenVersion   = errors.New("the token is of another version of Conclave")
	ErrTokenTruncated = errors.New("the token is cut off: copy all of it")
	ErrTokenTypo      = errors.New("the token has a typing error: copy it again")
)
