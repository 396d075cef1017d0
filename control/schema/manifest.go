package schema

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strings"
	"time"
)

// Service protocol versions that this server speaks, inclusive. A deployment must overlap with them to be registered.
const (
	MinProtocol = 5
	MaxProtocol = 7
)

// Manifest is what a deployment announces about itself: the JSON body of a discovery response. Fields that its version did
// not have yet are absent. DecodeManifest reads it.
type Manifest struct {
	ProtocolMode       string            `json:"protocolMode,omitempty"` // BIDI_STREAM or REQUEST_RESPONSE
	MinProtocolVersion int64             `json:"minProtocolVersion"`
	MaxProtocolVersion int64             `json:"maxProtocolVersion"`
	LambdaCompression  string            `json:"lambdaCompression,omitempty"` // zstd or nothing
	Services           []ManifestService `json:"services"`
}

// ManifestService announces a service.
type ManifestService struct {
	Name     string            `json:"name"`
	Type     string            `json:"ty"` // SERVICE, VIRTUAL_OBJECT or WORKFLOW
	Handlers []ManifestHandler `json:"handlers"`
	ManifestOptions
}

// ManifestHandler announces a handler.
type ManifestHandler struct {
	Name                        string          `json:"name"`
	Type                        string          `json:"ty,omitempty"` // WORKFLOW, EXCLUSIVE, SHARED or nothing
	Input                       *ManifestInput  `json:"input,omitempty"`
	Output                      *ManifestOutput `json:"output,omitempty"`
	WorkflowCompletionRetention *int64          `json:"workflowCompletionRetention,omitempty"` // ms
	ManifestOptions
}

// ManifestOptions are the options that both services and handlers may set. Durations are in ms; absent means not set.
type ManifestOptions struct {
	Documentation                   *string           `json:"documentation,omitempty"`
	Metadata                        map[string]string `json:"metadata,omitempty"`
	InactivityTimeout               *int64            `json:"inactivityTimeout,omitempty"`
	AbortTimeout                    *int64            `json:"abortTimeout,omitempty"`
	JournalRetention                *int64            `json:"journalRetention,omitempty"`
	IdempotencyRetention            *int64            `json:"idempotencyRetention,omitempty"`
	EnableLazyState                 *bool             `json:"enableLazyState,omitempty"`
	IngressPrivate                  *bool             `json:"ingressPrivate,omitempty"`
	RetryPolicyInitialInterval      *int64            `json:"retryPolicyInitialInterval,omitempty"`
	RetryPolicyMaxInterval          *int64            `json:"retryPolicyMaxInterval,omitempty"`
	RetryPolicyMaxAttempts          *int64            `json:"retryPolicyMaxAttempts,omitempty"`
	RetryPolicyExponentiationFactor *float64          `json:"retryPolicyExponentiationFactor,omitempty"`
	RetryPolicyOnMaxAttempts        *string           `json:"retryPolicyOnMaxAttempts,omitempty"` // PAUSE or KILL
}

// ManifestInput announces what bodies a handler accepts.
type ManifestInput struct {
	Required    *bool           `json:"required,omitempty"`
	ContentType *string         `json:"contentType,omitempty"`
	JSONSchema  json.RawMessage `json:"jsonSchema,omitempty"`
}

// ManifestOutput announces how a handler's output is labelled.
type ManifestOutput struct {
	ContentType           *string         `json:"contentType,omitempty"`
	SetContentTypeIfEmpty *bool           `json:"setContentTypeIfEmpty,omitempty"`
	JSONSchema            json.RawMessage `json:"jsonSchema,omitempty"`
}

// Discovered is the outcome of a successful discovery call.
type Discovered struct {
	Manifest *Manifest
	// SDKVersion is the x-restate-server header of the response; may be empty.
	SDKVersion string
	// HTTPVersion that the response came with; empty for Lambda.
	HTTPVersion HTTPVersion
}

// DecodeManifest reads a manifest and checks the form of its names and enumerations. Unknown fields are ignored, so that
// an SDK that announces more than this server knows can still be registered. What the server could not serve is refused later,
// by Register. The error text says where.
func DecodeManifest(b []byte) (*Manifest, error) {
	m := new(Manifest)
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(m); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, errors.New("decode manifest: there is more than one JSON value")
	}
	if err := m.check(); err != nil {
		return nil, fmt.Errorf("decode manifest: %w", err)
	}
	return m, nil
}

func (m *Manifest) check() error {
	if !slices.Contains([]string{"", "BIDI_STREAM", "REQUEST_RESPONSE"}, m.ProtocolMode) {
		return fmt.Errorf("protocolMode is %q, expected BIDI_STREAM or REQUEST_RESPONSE", m.ProtocolMode)
	}
	for _, v := range []int64{m.MinProtocolVersion, m.MaxProtocolVersion} {
		if v < 1 || v > math.MaxInt32 {
			return fmt.Errorf("protocol version %d is out of range", v)
		}
	}
	if m.LambdaCompression != "" && m.LambdaCompression != "zstd" {
		return fmt.Errorf("lambdaCompression is %q, expected zstd", m.LambdaCompression)
	}
	if m.Services == nil {
		return errors.New("missing field services")
	}
	for i := range m.Services {
		if err := m.Services[i].check(); err != nil {
			return err
		}
	}
	return nil
}

func (s *ManifestService) check() error {
	if err := checkLength("service", s.Name); err != nil {
		return err
	}
	if !validName(s.Name, "._-") {
		return fmt.Errorf("service name %q doesn't match ^([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9._-]*$", s.Name)
	}
	if !slices.Contains([]string{"SERVICE", "VIRTUAL_OBJECT", "WORKFLOW"}, s.Type) {
		return fmt.Errorf("service %s: ty is %q, expected SERVICE, VIRTUAL_OBJECT or WORKFLOW", s.Name, s.Type)
	}
	if err := s.ManifestOptions.check(); err != nil {
		return fmt.Errorf("service %s: %w", s.Name, err)
	}
	for i := range s.Handlers {
		if err := s.Handlers[i].check(); err != nil {
			return fmt.Errorf("service %s: %w", s.Name, err)
		}
	}
	return nil
}

func (h *ManifestHandler) check() error {
	if err := checkLength("handler", h.Name); err != nil {
		return err
	}
	if !validName(h.Name, "_") {
		return fmt.Errorf("handler name %q doesn't match ^([a-zA-Z]|_[a-zA-Z0-9])[a-zA-Z0-9_]*$", h.Name)
	}
	if !slices.Contains([]string{"", "WORKFLOW", "EXCLUSIVE", "SHARED"}, h.Type) {
		return fmt.Errorf("handler %s: ty is %q, expected WORKFLOW, EXCLUSIVE or SHARED", h.Name, h.Type)
	}
	if err := checkMillis("workflowCompletionRetention", h.WorkflowCompletionRetention); err != nil {
		return fmt.Errorf("handler %s: %w", h.Name, err)
	}
	if err := h.ManifestOptions.check(); err != nil {
		return fmt.Errorf("handler %s: %w", h.Name, err)
	}
	return nil
}

func (o *ManifestOptions) check() error {
	for _, f := range []struct {
		name string
		v    *int64
	}{
		{"inactivityTimeout", o.InactivityTimeout}, {"abortTimeout", o.AbortTimeout},
		{"journalRetention", o.JournalRetention}, {"idempotencyRetention", o.IdempotencyRetention},
		{"retryPolicyInitialInterval", o.RetryPolicyInitialInterval}, {"retryPolicyMaxInterval", o.RetryPolicyMaxInterval},
		{"retryPolicyMaxAttempts", o.RetryPolicyMaxAttempts},
	} {
		if err := checkMillis(f.name, f.v); err != nil {
			return err
		}
	}
	if f := o.RetryPolicyExponentiationFactor; f != nil && (*f < 0 || math.IsNaN(*f) || math.IsInf(*f, 0)) {
		return fmt.Errorf("retryPolicyExponentiationFactor is %g", *f)
	}
	if p := o.RetryPolicyOnMaxAttempts; p != nil && *p != "PAUSE" && *p != "KILL" {
		return fmt.Errorf("retryPolicyOnMaxAttempts is %q, expected PAUSE or KILL", *p)
	}
	return nil
}

func checkMillis(name string, v *int64) error {
	if v != nil && *v < 0 {
		return fmt.Errorf("%s is negative", name)
	}
	return nil
}

// maxMillis is the longest duration that can be represented; longer ones are read as this.
const maxMillis = math.MaxInt64 / int64(time.Millisecond)

func millis(v *int64) *time.Duration {
	if v == nil {
		return nil
	}
	d := time.Duration(min(*v, maxMillis)) * time.Millisecond
	return &d
}

// overrides converts the options that a service and a handler have in common.
func (o *ManifestOptions) overrides() Overrides {
	v := Overrides{
		InactivityTimeout:    millis(o.InactivityTimeout),
		AbortTimeout:         millis(o.AbortTimeout),
		JournalRetention:     millis(o.JournalRetention),
		IdempotencyRetention: millis(o.IdempotencyRetention),
		LazyState:            o.EnableLazyState,
		Retry: RetryOverrides{
			InitialInterval: millis(o.RetryPolicyInitialInterval),
			MaxInterval:     millis(o.RetryPolicyMaxInterval),
		},
	}
	if p := o.IngressPrivate; p != nil {
		public := !*p
		v.Public = &public
	}
	if f := o.RetryPolicyExponentiationFactor; f != nil {
		factor := max(*f, 1) // a shrinking delay would end in a busy loop
		v.Retry.Factor = &factor
	}
	if n := o.RetryPolicyMaxAttempts; n != nil {
		attempts := uint64(max(*n, 1)) // the first attempt is always made
		v.Retry.MaxAttempts = &attempts
	}
	if p := o.RetryPolicyOnMaxAttempts; p != nil {
		e := Pause
		if *p == "KILL" {
			e = Kill
		}
		v.Retry.OnMaxAttempts = &e
	}
	return v
}

// maxName bounds the names of services and handlers, in bytes. Each invocation keeps both, and the rows of each object
// begin with its service.
const maxName = 1024

func checkLength(what, name string) error {
	if len(name) > maxName {
		return fmt.Errorf("%s name %.40s… is %d bytes long, at most %d are allowed", what, name, len(name), maxName)
	}
	return nil
}

// validName reports whether s is a letter, or an underscore with a letter or digit, followed by letters, digits and extra.
func validName(s, extra string) bool {
	switch {
	case s == "":
		return false
	case letter(s[0]):
		s = s[1:]
	case len(s) > 1 && s[0] == '_' && (letter(s[1]) || digit(s[1])):
		s = s[2:]
	default:
		return false
	}
	for i := 0; i < len(s); i++ {
		if !letter(s[i]) && !digit(s[i]) && strings.IndexByte(extra, s[i]) < 0 {
			return false
		}
	}
	return true
}

func letter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }
func digit(c byte) bool  { return '0' <= c && c <= '9' }
