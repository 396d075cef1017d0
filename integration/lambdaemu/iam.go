package lambdaemu

import (
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"
)

// User is a caller with long-lived keys.
type User struct {
	AccessKeyID, SecretAccessKey string
	// ARN of the user, as messages and trust policies name it; arn:aws:iam::123456789012:user/<AccessKeyID> when empty.
	ARN string
	// Invoke are the function ARNs that the user may call, AssumeRole the roles that it may assume. * stands for anything.
	Invoke, AssumeRole []string
}

// Role can be assumed.
type Role struct {
	ARN string
	// Invoke are the function ARNs that the role may call. * stands for anything.
	Invoke []string
	// Principals are the ARNs that the trust policy names; * stands for anything.
	Principals []string
	// ExternalID is what the trust policy demands; "" for nothing.
	ExternalID string
	// TagSession says that the trust policy allows sts:TagSession.
	TagSession bool
}

// identity is who makes a call.
type identity struct {
	arn                string
	secret             string
	token              string
	expires            time.Time // zero: never
	invoke, assumeRole []string
}

func (id *identity) may(patterns []string, resource string) bool {
	for _, p := range patterns {
		if matches(p, resource) {
			return true
		}
	}
	return false
}

// matches is the * of policies, which also matches separators.
func matches(pattern, s string) bool {
	ok, err := path.Match(strings.ReplaceAll(pattern, "/", "\x00"), strings.ReplaceAll(s, "/", "\x00"))
	return ok && err == nil
}

type iam struct {
	mu    sync.Mutex
	ids   map[string]*identity // by access key
	roles map[string]Role
	count int // sessions made
}

func (i *iam) init() { i.ids, i.roles = map[string]*identity{}, map[string]Role{} }

// AddUser makes a caller known, or changes it.
func (e *Emulator) AddUser(u User) {
	if u.ARN == "" {
		u.ARN = "arn:aws:iam::123456789012:user/" + u.AccessKeyID
	}
	e.iam.mu.Lock()
	defer e.iam.mu.Unlock()
	e.iam.ids[u.AccessKeyID] = &identity{arn: u.ARN, secret: u.SecretAccessKey, invoke: u.Invoke, assumeRole: u.AssumeRole}
}

// AddRole makes a role known, or changes it for those who assume it from then on.
func (e *Emulator) AddRole(r Role) {
	e.iam.mu.Lock()
	defer e.iam.mu.Unlock()
	e.iam.roles[r.ARN] = r
}

// Sessions is how many role sessions were made.
func (e *Emulator) Sessions() int {
	e.iam.mu.Lock()
	defer e.iam.mu.Unlock()
	return e.iam.count
}

// authenticate finds out who signed a request for a service. body is the whole body.
func (e *Emulator) authenticate(r *http.Request, body []byte, service string) (*identity, *signature, *apiError) {
	sig, err := parseAuthorization(r.Header.Get("Authorization"))
	if err == errNoSignature {
		return nil, nil, &apiError{403, "MissingAuthenticationTokenException", "Missing Authentication Token", 0}
	}
	if err != nil {
		return nil, nil, &apiError{403, "IncompleteSignatureException", err.Error(), 0}
	}
	if sig.service != service {
		return nil, nil, invalidSignature("Credential should be scoped to correct service: '%s'.", service)
	}
	e.iam.mu.Lock()
	id := e.iam.ids[sig.accessKey]
	e.iam.mu.Unlock()
	if id == nil || id.token != r.Header.Get("X-Amz-Security-Token") {
		return nil, nil, &apiError{403, "UnrecognizedClientException", "The security token included in the request is invalid.", 0}
	}
	now := e.cfg.Now()
	if err := sig.checkTime(r, now); err != nil {
		return nil, nil, invalidSignature("%v", err)
	}
	if err := sig.verify(r, body, id.secret); err != nil {
		return nil, nil, invalidSignature("The request signature we calculated does not match the signature you provided. Check your AWS Secret Access Key and signing method. (%v)", err)
	}
	if !id.expires.IsZero() && now.After(id.expires) {
		return nil, nil, &apiError{403, "ExpiredTokenException", "The security token included in the request is expired", 0}
	}
	return id, sig, nil
}

func invalidSignature(format string, args ...any) *apiError {
	return &apiError{403, "InvalidSignatureException", fmt.Sprintf(format, args...), 0}
}

const stsNamespace = "https://sts.amazonaws.com/doc/2011-06-15/"

type assumeRoleResponse struct {
	XMLName         xml.Name `xml:"AssumeRoleResponse"`
	Namespace       string   `xml:"xmlns,attr"`
	AccessKeyID     string   `xml:"AssumeRoleResult>Credentials>AccessKeyId"`
	SecretAccessKey string   `xml:"AssumeRoleResult>Credentials>SecretAccessKey"`
	SessionToken    string   `xml:"AssumeRoleResult>Credentials>SessionToken"`
	Expiration      string   `xml:"AssumeRoleResult>Credentials>Expiration"`
	ARN             string   `xml:"AssumeRoleResult>AssumedRoleUser>Arn"`
	ID              string   `xml:"AssumeRoleResult>AssumedRoleUser>AssumedRoleId"`
	RequestID       string   `xml:"ResponseMetadata>RequestId"`
}

type stsErrorResponse struct {
	XMLName   xml.Name `xml:"ErrorResponse"`
	Namespace string   `xml:"xmlns,attr"`
	Type      string   `xml:"Error>Type"`
	Code      string   `xml:"Error>Code"`
	Message   string   `xml:"Error>Message"`
	RequestID string   `xml:"RequestId"`
}

func (e *Emulator) serveSTS(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<10))
	if err != nil {
		drop()
	}
	out, fail := e.assumeRole(r, body)
	var answer any = out
	status := http.StatusOK
	if fail != nil {
		status = fail.status
		// STS has its own words for some of the errors of signatures.
		code := map[string]string{"UnrecognizedClientException": "InvalidClientTokenId", "InvalidSignatureException": "SignatureDoesNotMatch",
			"ExpiredTokenException": "ExpiredToken", "MissingAuthenticationTokenException": "MissingAuthenticationToken"}[fail.code]
		if code == "" {
			code = fail.code
		}
		answer = stsErrorResponse{Namespace: stsNamespace, Type: "Sender", Code: code, Message: fail.message, RequestID: newRequestID()}
	}
	b, err := xml.Marshal(answer)
	if err != nil {
		panic(err) // plain strings always marshal
	}
	e.cfg.Logger.Info("assume role", "status", status)
	w.Header().Set("Content-Type", "text/xml")
	w.WriteHeader(status)
	w.Write(b) // an error means that the caller is gone
}

func (e *Emulator) assumeRole(r *http.Request, body []byte) (*assumeRoleResponse, *apiError) {
	caller, _, fail := e.authenticate(r, body, "sts")
	if fail != nil {
		return nil, fail
	}
	form, err := url.ParseQuery(string(body))
	if err != nil || form.Get("Action") != "AssumeRole" || form.Get("Version") != "2011-06-15" {
		return nil, &apiError{400, "InvalidAction", "this emulator has AssumeRole of version 2011-06-15 only", 0}
	}
	name, session := form.Get("RoleArn"), form.Get("RoleSessionName")
	if len(session) < 2 || len(session) > 64 {
		return nil, &apiError{400, "ValidationError", "Value at 'roleSessionName' failed to satisfy constraint: Member must have length between 2 and 64", 0}
	}
	lifetime := e.cfg.SessionLifetime
	if s := form.Get("DurationSeconds"); s != "" {
		n, err := strconv.Atoi(s)
		if err != nil || n < 900 || n > 43200 {
			return nil, &apiError{400, "ValidationError", "Value at 'durationSeconds' failed to satisfy constraint: Member must be between 900 and 43200", 0}
		}
		lifetime = time.Duration(n) * time.Second
	}
	action := "sts:AssumeRole"
	e.iam.mu.Lock()
	defer e.iam.mu.Unlock()
	role, ok := e.iam.roles[name]
	trusted := (&identity{}).may(role.Principals, caller.arn) && (role.ExternalID == "" || role.ExternalID == form.Get("ExternalId"))
	if form.Has("Tags.member.1.Key") && !role.TagSession {
		action, trusted = "sts:TagSession", false
	}
	if !ok || !trusted || !caller.may(caller.assumeRole, name) {
		return nil, &apiError{403, "AccessDenied", fmt.Sprintf("User: %s is not authorized to perform: %s on resource: %s", caller.arn, action, name), 0}
	}
	e.iam.count++
	expires := e.cfg.Now().Add(lifetime).Truncate(time.Second)
	id := &identity{secret: random(20), token: random(32), expires: expires, invoke: role.Invoke}
	id.arn = strings.Replace(strings.Replace(name, ":iam::", ":sts::", 1), ":role/", ":assumed-role/", 1) + "/" + session
	key := "ASIA" + strings.ToUpper(random(8))
	e.iam.ids[key] = id
	return &assumeRoleResponse{Namespace: stsNamespace, AccessKeyID: key, SecretAccessKey: id.secret, SessionToken: id.token,
		Expiration: expires.UTC().Format(time.RFC3339), ARN: id.arn, ID: "AROAEMULATED:" + session, RequestID: newRequestID()}, nil
}
