package snapshot

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
)

// S3 is a place in a bucket of an S3-compatible store. It speaks the four calls
// that it needs by net/http; the signatures are the AWS SDK's
// (docs/decisions/0008-snapshots.md).
type S3 struct {
	Endpoint     string // https://…; empty: AWS's own for the region
	Region       string // us-east-1 if empty
	AccessKey    string
	SecretKey    string
	SessionToken string

	Bucket string
	Prefix string // of names, with its slash
}

// S3FromEnvironment takes what the AWS tools take; get is os.Getenv, or reads a
// Secret.
func S3FromEnvironment(get func(string) string) S3 {
	first := func(names ...string) string {
		for _, name := range names {
			if v := strings.TrimSpace(get(name)); v != "" {
				return v
			}
		}
		return ""
	}
	return S3{
		Endpoint: first("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), Region: first("AWS_REGION", "AWS_DEFAULT_REGION"),
		AccessKey: first("AWS_ACCESS_KEY_ID"), SecretKey: first("AWS_SECRET_ACCESS_KEY"), SessionToken: first("AWS_SESSION_TOKEN"),
	}
}

func (s *S3) check() error {
	if s.Region == "" {
		s.Region = "us-east-1"
	}
	if s.AccessKey == "" || s.SecretKey == "" {
		return errors.New("S3 needs credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
	}
	if s.Endpoint == "" {
		s.Endpoint = fmt.Sprintf("https://s3.%s.amazonaws.com", s.Region)
	}
	u, err := url.Parse(s.Endpoint)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" {
		return fmt.Errorf("the S3 endpoint %q is no address such as https://minio.example:9000", s.Endpoint)
	}
	return nil
}

func (s *S3) String() string { return s3Scheme + s.Bucket + "/" + s.Prefix }

// emptySum is the SHA-256 of nothing.
const emptySum = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"

// s3Client gives a silent server up; how long a body takes is its size's affair.
var s3Client = &http.Client{Transport: &http.Transport{
	Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: 10 * time.Second, ResponseHeaderTimeout: time.Minute,
	ExpectContinueTimeout: time.Second, DisableKeepAlives: true, // snapshots are rare
}}

// do makes one signed request; an answer other than 2xx is an error.
func (s *S3) do(ctx context.Context, method, key string, query url.Values, body io.Reader, size int64, sum string) (*http.Response, error) {
	u, err := url.Parse(s.Endpoint)
	if err != nil {
		return nil, err
	}
	// Paths instead of host names of buckets: every server knows them. They are
	// escaped as the signature wants it, which is more than HTTP needs.
	u.Path, u.RawPath = strings.TrimSuffix(u.Path, "/"), strings.TrimSuffix(u.EscapedPath(), "/")
	for _, part := range strings.Split(strings.TrimSuffix(s.Bucket+"/"+key, "/"), "/") {
		u.Path += "/" + part
		u.RawPath += "/" + strings.ReplaceAll(url.QueryEscape(part), "+", "%20")
	}
	u.RawQuery = query.Encode()
	r, err := http.NewRequestWithContext(ctx, method, u.String(), body)
	if err != nil {
		return nil, err
	}
	r.ContentLength = size
	r.Header.Set("X-Amz-Content-Sha256", sum)
	err = v4.NewSigner(func(o *v4.SignerOptions) { o.DisableURIPathEscaping = true }).SignHTTP(ctx,
		aws.Credentials{AccessKeyID: s.AccessKey, SecretAccessKey: s.SecretKey, SessionToken: s.SessionToken}, r, sum, "s3", s.Region, time.Now())
	if err != nil {
		return nil, fmt.Errorf("sign the request: %w", err)
	}
	answer, err := s3Client.Do(r)
	if err != nil {
		return nil, err
	}
	if answer.StatusCode/100 == 2 {
		return answer, nil
	}
	defer answer.Body.Close()
	var why struct{ Code, Message string }
	if raw, err := io.ReadAll(io.LimitReader(answer.Body, 64<<10)); err == nil {
		_ = xml.Unmarshal(raw, &why) // an answer without a reason is known by its status
	}
	err = fmt.Errorf("%s: %s %s", answer.Status, why.Code, why.Message)
	if answer.StatusCode == http.StatusNotFound && why.Code != "NoSuchBucket" {
		err = fmt.Errorf("%w: %w", fs.ErrNotExist, err)
	}
	return nil, err
}

func (s *S3) fail(doing, name string, err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("%s %s%s at %s: %w", doing, s, name, s.Endpoint, err)
}

func (s *S3) Put(ctx context.Context, name string, file io.ReadSeeker, size int64) error {
	sum := sha256.New()
	if _, err := io.Copy(sum, file); err != nil {
		return err
	}
	if err := again(file); err != nil {
		return err
	}
	var body io.Reader = http.NoBody
	if size > 0 {
		body = io.NopCloser(file)
	}
	answer, err := s.do(ctx, http.MethodPut, s.Prefix+name, nil, body, size, hex.EncodeToString(sum.Sum(nil)))
	if err == nil {
		err = answer.Body.Close()
	}
	return s.fail("store", name, err)
}

func (s *S3) Get(ctx context.Context, name string) (io.ReadCloser, error) {
	answer, err := s.do(ctx, http.MethodGet, s.Prefix+name, nil, nil, 0, emptySum)
	if err != nil {
		return nil, s.fail("fetch", name, err)
	}
	return answer.Body, nil
}

func (s *S3) Delete(ctx context.Context, name string) error {
	answer, err := s.do(ctx, http.MethodDelete, s.Prefix+name, nil, nil, 0, emptySum)
	if err == nil {
		err = answer.Body.Close()
	}
	return s.fail("delete", name, err)
}

func (s *S3) List(ctx context.Context) ([]Entry, error) {
	var all []Entry
	query := url.Values{"list-type": {"2"}, "prefix": {s.Prefix}, "delimiter": {"/"}}
	for {
		var page struct {
			Contents []struct {
				Key  string
				Size int64
			}
			IsTruncated           bool
			NextContinuationToken string
		}
		answer, err := s.do(ctx, http.MethodGet, "", query, nil, 0, emptySum)
		if err == nil {
			err = xml.NewDecoder(io.LimitReader(answer.Body, 16<<20)).Decode(&page)
			answer.Body.Close()
		}
		if err != nil {
			return nil, s.fail("list", "", err)
		}
		for _, o := range page.Contents {
			if e, ok := entryOf(strings.TrimPrefix(o.Key, s.Prefix), o.Size); ok {
				all = append(all, e)
			}
		}
		if !page.IsTruncated || page.NextContinuationToken == "" {
			return sorted(all), nil
		}
		query.Set("continuation-token", page.NextContinuationToken)
	}
}
