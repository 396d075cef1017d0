package lambda

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awshttp "github.com/aws/aws-sdk-go-v2/aws/transport/http"
	api "github.com/aws/aws-sdk-go-v2/service/lambda"
	"github.com/aws/aws-sdk-go-v2/service/sts"
	"github.com/aws/aws-sdk-go-v2/service/sts/types"
)

// clients keeps one API client for each region and role, and the credentials of each role.
type clients struct {
	client *Client
	http   aws.HTTPClient
	own    *http.Client // http, when the configuration has none

	mu    sync.Mutex
	byKey map[clientKey]*api.Client
	roles map[string]aws.CredentialsProvider
}

type clientKey struct{ region, role string }

// maxClients bounds the caches; there are a few in practice. Above it any one is dropped: making one again is cheap.
const maxClients = 1024

func newClients(client *Client) *clients {
	c := &clients{client: client, byKey: make(map[clientKey]*api.Client), roles: make(map[string]aws.CredentialsProvider)}
	c.http = client.cfg.AWS.HTTPClient
	if c.http == nil {
		tr := awshttp.NewBuildableClient().GetTransport() // the SDK's timeouts
		// Each running call holds a connection. Keep them: a handshake costs more than a call.
		tr.MaxIdleConns = 0
		tr.MaxIdleConnsPerHost = client.cfg.MaxConcurrency
		c.own = &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
		c.http = c.own
	}
	return c
}

func (c *clients) close() {
	if c.own != nil {
		c.own.CloseIdleConnections()
	}
}

// get returns the client for a function's region and a deployment's role.
func (c *clients) get(region, role string) *api.Client {
	key := clientKey{region, role}
	c.mu.Lock()
	defer c.mu.Unlock()
	if client := c.byKey[key]; client != nil {
		return client
	}
	evict(c.byKey, maxClients)
	client := api.NewFromConfig(c.client.cfg.AWS, func(o *api.Options) {
		o.Region = region
		o.Credentials = c.credentialsLocked(region, role)
		o.Retryer = aws.NopRetryer{} // retries are the invoker's
		o.HTTPClient = boundedClient{c.http}
	})
	c.byKey[key] = client
	return client
}

// evict makes room for one more entry.
func evict[K comparable, V any](m map[K]V, limit int) {
	for k := range m {
		if len(m) < limit {
			return
		}
		delete(m, k)
	}
}

// credentialsLocked returns the credentials of a role, or the process's own.
func (c *clients) credentialsLocked(region, role string) aws.CredentialsProvider {
	if p := c.roles[role]; p != nil {
		return p
	}
	evict(c.roles, maxClients)
	p := tagErrors{provider: c.client.cfg.AWS.Credentials}
	if role != "" {
		p = tagErrors{role: role, provider: &roleCredentials{spawn: c.client.spawn, assume: c.assume(region, role)}}
	}
	c.roles[role] = p
	return p
}

// assume returns a function that assumes a role. The region is only used when the process has none of its own. The name
// of the session tells when it began, so that sessions can be told apart in audit logs.
func (c *clients) assume(region, role string) func(context.Context) (aws.Credentials, error) {
	cfg := &c.client.cfg
	client := sts.NewFromConfig(cfg.AWS, func(o *sts.Options) {
		if o.Region == "" {
			o.Region = region
		}
		o.HTTPClient = boundedClient{c.http}
	})
	return func(ctx context.Context) (aws.Credentials, error) {
		in := &sts.AssumeRoleInput{RoleArn: &role, RoleSessionName: aws.String(fmt.Sprintf("%s-%d", cfg.SessionName, time.Now().Unix()))}
		if cfg.ExternalID != "" {
			in.ExternalId = &cfg.ExternalID
		}
		for _, key := range sortedKeys(cfg.SessionTags) {
			in.Tags = append(in.Tags, types.Tag{Key: aws.String(key), Value: aws.String(cfg.SessionTags[key])})
		}
		out, err := client.AssumeRole(ctx, in)
		if err != nil {
			return aws.Credentials{}, err
		}
		if out.Credentials == nil {
			return aws.Credentials{}, errNoRoleKeys
		}
		return aws.Credentials{
			AccessKeyID:     aws.ToString(out.Credentials.AccessKeyId),
			SecretAccessKey: aws.ToString(out.Credentials.SecretAccessKey),
			SessionToken:    aws.ToString(out.Credentials.SessionToken),
			CanExpire:       true,
			Expires:         aws.ToTime(out.Credentials.Expiration),
			Source:          "AssumeRole",
		}, nil
	}
}

var errNoRoleKeys = errors.New("STS answered without credentials")

const (
	refreshAhead = 5 * time.Minute  // before their end, credentials are replaced in the background
	refreshAgain = 30 * time.Second // after a refresh that failed
	refreshLimit = 30 * time.Second // how long one may take
)

// roleCredentials caches the credentials of a role. They are replaced ahead of their end, and as long as they are good
// nobody waits for that nor fails with it: STS may be away for longer than a call.
type roleCredentials struct {
	spawn  func(func(ctx context.Context)) bool
	assume func(context.Context) (aws.Credentials, error)

	mu       sync.Mutex
	creds    aws.Credentials
	notUntil time.Time // no refresh before
	running  *refresh
}

// refresh is one call of STS; its result is there when done is closed.
type refresh struct {
	done  chan struct{}
	creds aws.Credentials
	err   error
}

// Retrieve implements aws.CredentialsProvider.
func (r *roleCredentials) Retrieve(ctx context.Context) (aws.Credentials, error) {
	now := time.Now()
	r.mu.Lock()
	creds := r.creds
	good := creds.HasKeys() && now.Before(creds.Expires)
	if good && (now.Before(creds.Expires.Add(-refreshAhead)) || now.Before(r.notUntil)) {
		r.mu.Unlock()
		return creds, nil
	}
	f := r.startLocked()
	r.mu.Unlock()
	if good {
		return creds, nil
	}
	select {
	case <-f.done:
		return f.creds, f.err
	case <-ctx.Done():
		return aws.Credentials{}, context.Cause(ctx)
	}
}

// startLocked returns the running refresh, or a new one. It belongs to the client, not to the call that began it.
func (r *roleCredentials) startLocked() *refresh {
	if r.running != nil {
		return r.running
	}
	f := &refresh{done: make(chan struct{})}
	r.running = f
	ok := r.spawn(func(ctx context.Context) {
		ctx, cancel := context.WithTimeout(ctx, refreshLimit)
		defer cancel()
		creds, err := r.assume(ctx)
		r.finish(f, creds, err)
	})
	if !ok {
		r.running = nil
		f.err = errClosed
		close(f.done)
	}
	return f
}

func (r *roleCredentials) finish(f *refresh, creds aws.Credentials, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	f.creds, f.err = creds, err
	r.running = nil
	if err == nil {
		r.creds = creds
	} else {
		r.notUntil = time.Now().Add(refreshAgain)
	}
	close(f.done)
}

// tagErrors marks the errors of a provider.
type tagErrors struct {
	role     string
	provider aws.CredentialsProvider
}

// Retrieve implements aws.CredentialsProvider.
func (t tagErrors) Retrieve(ctx context.Context) (aws.Credentials, error) {
	if t.provider == nil {
		return aws.Credentials{}, &credentialError{role: t.role, err: errNoCredentials}
	}
	creds, err := t.provider.Retrieve(ctx)
	if err != nil {
		return creds, &credentialError{role: t.role, err: err}
	}
	return creds, nil
}

// boundedClient bounds what is read of a response: the SDK would read any length into memory.
type boundedClient struct{ aws.HTTPClient }

// maxAnswer is above what Lambda lets a function return (6 MB and some envelope).
const maxAnswer = 8 << 20

// Do implements aws.HTTPClient.
//
// It hides that the request's body can WriteTo: the SDK closes the body as soon as a response begins, its WriteTo then
// returns io.EOF as an error, and net/http, which has written everything and only looks for more, closes the connection on
// which the response is still coming in.
func (b boundedClient) Do(r *http.Request) (*http.Response, error) {
	if r.Body != nil && r.Body != http.NoBody {
		r.Body = struct{ io.ReadCloser }{r.Body}
	}
	resp, err := b.HTTPClient.Do(r)
	if err == nil && resp.Body != nil {
		resp.Body = &boundedBody{ReadCloser: resp.Body, left: maxAnswer}
	}
	return resp, err
}

type boundedBody struct {
	io.ReadCloser
	left int
}

func (b *boundedBody) Read(p []byte) (int, error) {
	if b.left < 0 {
		return 0, errAnswerTooLarge
	}
	n, err := b.ReadCloser.Read(p[:min(len(p), b.left+1)])
	if b.left -= n; b.left < 0 {
		return 0, errAnswerTooLarge
	}
	return n, err
}
