package admin

import (
	"encoding/json"
	"errors"
	"time"

	"perdure/control/duration"
	"perdure/control/schema"
)

// The JSON shapes of the interface. Order of fields and what is omitted are as published.

// span is a duration in the short friendly form.
type span time.Duration

// MarshalText prints the short friendly form.
func (s span) MarshalText() ([]byte, error) { return []byte(duration.Format(time.Duration(s))), nil }

func spanOf(d *time.Duration) *span { return (*span)(d) }

// stamp is a time as the interface prints it: nine digits, of which the last six are 0.
func stamp(ms uint64) string {
	return time.UnixMilli(int64(ms)).UTC().Format("2006-01-02T15:04:05.000000000Z")
}

type retryJSON struct {
	InitialInterval *span                  `json:"initial_interval,omitempty"`
	Factor          *float64               `json:"exponentiation_factor,omitempty"`
	MaxAttempts     *uint64                `json:"max_attempts"`
	MaxInterval     *span                  `json:"max_interval,omitempty"`
	OnMaxAttempts   *schema.ExhaustedRetry `json:"on_max_attempts,omitempty"`
}

type handlerJSON struct {
	Name                 string            `json:"name"`
	Type                 string            `json:"ty,omitempty"`
	Documentation        *string           `json:"documentation,omitempty"`
	Metadata             map[string]string `json:"metadata,omitempty"`
	IdempotencyRetention *span             `json:"idempotency_retention,omitempty"`
	JournalRetention     *span             `json:"journal_retention,omitempty"`
	InactivityTimeout    *span             `json:"inactivity_timeout,omitempty"`
	AbortTimeout         *span             `json:"abort_timeout,omitempty"`
	LazyState            *bool             `json:"enable_lazy_state,omitempty"`
	Public               bool              `json:"public"`
	Input                string            `json:"input_description"`
	Output               string            `json:"output_description"`
	InputSchema          json.RawMessage   `json:"input_json_schema,omitempty"`
	OutputSchema         json.RawMessage   `json:"output_json_schema,omitempty"`
	Retry                retryJSON         `json:"retry_policy"`
	Info                 []noteJSON        `json:"info,omitempty"`
}

// noteJSON tells that something that a deployment asked for is not done like that.
type noteJSON struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

func notesOf(notes []schema.Note) []noteJSON {
	var l []noteJSON
	for _, n := range notes {
		l = append(l, noteJSON(n))
	}
	return l
}

type serviceJSON struct {
	Name                 string            `json:"name"`
	Type                 string            `json:"ty"`
	Handlers             []handlerJSON     `json:"handlers"`
	Documentation        *string           `json:"documentation,omitempty"`
	Metadata             map[string]string `json:"metadata,omitempty"`
	DeploymentID         string            `json:"deployment_id"`
	Revision             uint32            `json:"revision"`
	Public               bool              `json:"public"`
	IdempotencyRetention span              `json:"idempotency_retention"`
	WorkflowRetention    *span             `json:"workflow_completion_retention,omitempty"`
	JournalRetention     span              `json:"journal_retention"`
	InactivityTimeout    span              `json:"inactivity_timeout"`
	AbortTimeout         span              `json:"abort_timeout"`
	LazyState            bool              `json:"enable_lazy_state"`
	Retry                retryJSON         `json:"retry_policy"`
	Info                 []noteJSON        `json:"info,omitempty"`
}

// handlerOf shows what a handler overrides, as far as it has an effect, and whether it is public in the end.
func handlerOf(h *schema.Handler) handlerJSON {
	o := &h.Applied
	j := handlerJSON{
		Name: h.Name, Documentation: h.Documentation, Metadata: h.Metadata,
		IdempotencyRetention: spanOf(o.IdempotencyRetention), JournalRetention: spanOf(o.JournalRetention),
		InactivityTimeout: spanOf(o.InactivityTimeout), AbortTimeout: spanOf(o.AbortTimeout), LazyState: o.LazyState,
		Public: h.Options.Public, Input: describeInput(&h.Input), Output: describeOutput(&h.Output),
		InputSchema: h.Input.JSONSchema, OutputSchema: h.Output.JSONSchema,
		Retry: retryJSON{spanOf(o.Retry.InitialInterval), o.Retry.Factor, o.Retry.MaxAttempts, spanOf(o.Retry.MaxInterval), o.Retry.OnMaxAttempts},
		Info:  notesOf(h.Notes),
	}
	if h.ServiceType != schema.Service {
		j.Type = h.Type.String()
	}
	return j
}

// serviceOf shows effective values.
func serviceOf(v *schema.ServiceRevision) serviceJSON {
	o := v.Options
	j := serviceJSON{
		Name: v.Name, Type: v.Type.String(), Handlers: make([]handlerJSON, len(v.Handlers)), Documentation: v.Documentation, Metadata: v.Metadata,
		DeploymentID: v.Deployment.String(), Revision: v.Revision, Public: o.Public,
		IdempotencyRetention: span(o.IdempotencyRetention), JournalRetention: span(o.JournalRetention),
		InactivityTimeout: span(o.InactivityTimeout), AbortTimeout: span(o.AbortTimeout), LazyState: o.LazyState,
		Retry: retryJSON{InitialInterval: (*span)(&o.Retry.InitialInterval), Factor: &o.Retry.Factor, OnMaxAttempts: &o.Retry.OnMaxAttempts},
		Info:  notesOf(v.Notes),
	}
	if o.Retry.MaxAttempts > 0 {
		j.Retry.MaxAttempts = &o.Retry.MaxAttempts
	}
	if o.Retry.MaxInterval > 0 {
		j.Retry.MaxInterval = (*span)(&o.Retry.MaxInterval)
	}
	if v.Type == schema.Workflow {
		j.WorkflowRetention = (*span)(&o.WorkflowRetention)
	}
	for i := range v.Handlers {
		j.Handlers[i] = handlerOf(&v.Handlers[i])
	}
	return j
}

func servicesOf(d *schema.Deployment) []serviceJSON {
	list := make([]serviceJSON, len(d.Services))
	for i := range d.Services {
		list[i] = serviceOf(&d.Services[i])
	}
	return list
}

type registeredJSON struct {
	ID          string        `json:"id"`
	Services    []serviceJSON `json:"services"`
	MinProtocol uint32        `json:"min_protocol_version"`
	MaxProtocol uint32        `json:"max_protocol_version"`
	SDKVersion  string        `json:"sdk_version,omitempty"`
}

func registeredOf(d *schema.Deployment) registeredJSON {
	return registeredJSON{d.ID.String(), servicesOf(d), d.MinProtocol, d.MaxProtocol, d.SDKVersion}
}

// deploymentJSON is a deployment; S is how its services are shown.
type deploymentJSON[S any] struct {
	ID            string              `json:"id"`
	URI           string              `json:"uri,omitempty"`
	ProtocolType  schema.ProtocolType `json:"protocol_type,omitempty"`
	HTTPVersion   schema.HTTPVersion  `json:"http_version,omitempty"`
	ARN           string              `json:"arn,omitempty"`
	AssumeRoleARN string              `json:"assume_role_arn,omitempty"`
	Compression   string              `json:"compression,omitempty"`
	Headers       map[string]string   `json:"additional_headers,omitempty"`
	Metadata      map[string]string   `json:"metadata,omitempty"`
	CreatedAt     string              `json:"created_at"`
	MinProtocol   uint32              `json:"min_protocol_version"`
	MaxProtocol   uint32              `json:"max_protocol_version"`
	SDKVersion    string              `json:"sdk_version,omitempty"`
	Services      []S                 `json:"services"`
}

func deploymentOf[S any](d *schema.Deployment, services []S) deploymentJSON[S] {
	j := deploymentJSON[S]{
		ID: d.ID.String(), Headers: d.Headers, Metadata: d.Metadata, CreatedAt: stamp(d.CreatedMs),
		MinProtocol: d.MinProtocol, MaxProtocol: d.MaxProtocol, SDKVersion: d.SDKVersion, Services: services,
	}
	if h := d.Address.HTTP; h != nil {
		j.URI, j.ProtocolType, j.HTTPVersion = h.URI, d.ProtocolType, h.Version
	}
	if l := d.Address.Lambda; l != nil {
		j.ARN, j.AssumeRoleARN = l.ARN, l.AssumeRoleARN
		if l.Compression == "zstd" {
			j.Compression = "Zstd"
		}
	}
	return j
}

type serviceRefJSON struct {
	Name     string `json:"name"`
	Revision uint32 `json:"revision"`
}

func detailOf(d *schema.Deployment) deploymentJSON[serviceJSON] {
	return deploymentOf(d, servicesOf(d))
}

func summaryOf(d *schema.Deployment) deploymentJSON[serviceRefJSON] {
	refs := make([]serviceRefJSON, len(d.Services))
	for i, v := range d.Services {
		refs[i] = serviceRefJSON{v.Name, v.Revision}
	}
	return deploymentOf(d, refs)
}

// describeInput says in words what a handler accepts.
func describeInput(r *schema.InputRule) string {
	switch {
	case r.Any:
		return "*/*"
	case r.ContentType == "" && r.Required:
		return "<invalid rules>"
	case r.ContentType == "":
		return "none"
	}
	return describeSchema(r.ContentType, r.JSONSchema)
}

func describeOutput(r *schema.OutputRule) string {
	switch {
	case r.ContentType == "":
		return "none"
	case len(r.JSONSchema) > 0:
		return describeSchema(r.ContentType, r.JSONSchema)
	case r.SetIfEmpty:
		return "optional " + r.ContentType
	}
	return r.ContentType
}

// describeSchema names a schema by its title or type, else by the content type.
func describeSchema(contentType string, raw json.RawMessage) string {
	var s struct {
		Title any `json:"title"`
		Type  any `json:"type"`
	}
	if err := json.Unmarshal(raw, &s); err != nil { // no schema, or one that is a boolean
		return contentType
	}
	if title, ok := s.Title.(string); ok {
		return "JSON '" + title + "'"
	}
	if t, ok := s.Type.(string); ok {
		return "JSON " + t
	}
	return contentType
}

// parseSpan reads an optional duration of a request; the error names the field.
func parseSpan(field string, s *string) (*time.Duration, error) {
	if s == nil {
		return nil, nil
	}
	d, err := duration.Parse(*s)
	if err != nil {
		return nil, mismatch(errors.New(field + ": " + err.Error()))
	}
	return &d, nil
}
