// Package cli is the verbs that users type, and the wiring of every other room
// into one process. It decides nothing: server.go makes the rooms, hands each
// what it asked for by its own small interfaces, and runs them in one group;
// the other files turn a command line into calls and print what comes back.
//
// A Server runs until its context ends or one of its rooms fails; Run returns
// when all of them have ended. The commands that talk to a running server do so
// over its unix socket (admin.go) or as any client of the Kubernetes API.
package cli
