package schema

import (
	"cmp"
	"encoding/json"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"perdure/control/ident"
)

// Registration is what somebody asks to be registered.
type Registration struct {
	// Address with a normalised URI or a checked ARN; what discovery finds out (HTTP version, compression) is filled in by
	// Register.
	Address Address
	// Headers have lower-case names.
	Headers  map[string]string
	Metadata map[string]string
	// Force replaces a deployment that is registered at the address, and implies Breaking.
	Force bool
	// Breaking allows what breaks callers: another service type.
	Breaking bool
	// RoutingHeaders by which deployments at one URL differ.
	RoutingHeaders []string
}

// Outcome says what a registration did.
type Outcome uint8

// What a registration did.
const (
	Created Outcome = iota + 1
	Unchanged
	Overwritten
)

// Change is a new snapshot that differs from the old one in one deployment.
type Change struct {
	Schema *Schema
	// Deployment is the one that changed, in its stored form but with options resolved. For a deletion it is the deleted one.
	Deployment *Deployment
	Outcome    Outcome
}

// Kind says what sort of refusal a ConflictError is.
type Kind uint8

// Kinds of refusals.
const (
	Invalid     Kind = iota + 1 // the request, or what the deployment announced, is not acceptable
	Conflict                    // it clashes with what is registered
	Unsupported                 // the deployment cannot be served by this server
)

// ConflictError refuses a change of the schema. Its text is the one that users of the admin API know.
type ConflictError struct {
	Kind Kind
	// Code is the published code of the error (META0006); empty for most.
	Code    string
	Message string
}

func (e *ConflictError) Error() string { return e.Message }

func refuse(kind Kind, code, format string, args ...any) error {
	return &ConflictError{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// Register adds the deployment that was discovered at the registration's address, or replaces the one that is registered there
// when forced. nowMs becomes the time of creation and id the identity of a new deployment; a replaced one keeps its identity.
// Each of its services gets the revision after the latest. The error is a *ConflictError.
func (s *Schema) Register(r Registration, found Discovered, nowMs uint64, id ident.DeploymentID) (*Change, error) {
	old := s.Find(r.Address, r.Headers, r.RoutingHeaders)
	if old != nil && !r.Force {
		return &Change{Schema: s, Deployment: old, Outcome: Unchanged}, nil
	}
	outcome := Created
	if old != nil {
		outcome, id = Overwritten, old.ID
	}
	d, err := s.deployment(r.Address, found)
	if err != nil {
		return nil, err
	}
	d.ID, d.CreatedMs, d.Headers, d.Metadata = id, nowMs, r.Headers, r.Metadata
	if _, err := d.LambdaConcurrency(); err != nil {
		return nil, err
	}
	for i := range d.Services {
		v := &d.Services[i]
		v.Revision = 1
		if l := s.latest[v.Name]; l != nil {
			v.Revision = l.rev.Revision + 1
			if l.rev.Type != v.Type && !r.Breaking && !r.Force {
				return nil, typeChanged(v.Name)
			}
		}
	}
	return s.replace(d, outcome), nil
}

// LambdaConcurrencyKey is the entry of a deployment's metadata that caps the calls of a Lambda function.
const LambdaConcurrencyKey = "lambda.concurrency"

// LambdaConcurrency is how many calls of the function may run at once as its metadata says, 0 if it says nothing. The error is
// a *ConflictError.
func (d *Deployment) LambdaConcurrency() (int, error) {
	v, ok := d.Metadata[LambdaConcurrencyKey]
	if !ok {
		return 0, nil
	}
	n, err := strconv.Atoi(v)
	if err != nil || n < 1 || d.Address.Lambda == nil {
		return 0, refuse(Invalid, "", "metadata '%s' is '%s': it must be a whole number from 1 on, of a deployment on AWS Lambda", LambdaConcurrencyKey, v)
	}
	return n, nil
}

func typeChanged(service string) error {
	return refuse(Conflict, "META0006", "detected a new service revision for '%s' changing the service type from previous revision. Service type cannot be changed across revisions.", service)
}

// Update is a change of a registered deployment in place.
type Update struct {
	// Address where the deployment is from now on.
	Address Address
	Headers map[string]string
	// Overwrite replaces the services by those discovered, keeping revisions of those that exist; otherwise services stay as
	// they are.
	Overwrite bool
}

// Update changes a deployment in place to what was discovered at its new address. It must announce the same protocol
// versions, since invocations are pinned to them. The error is a *ConflictError or a *DeploymentNotFoundError.
func (s *Schema) Update(id ident.DeploymentID, u Update, found Discovered) (*Change, error) {
	r := s.deployments[id]
	if r == nil {
		return nil, &DeploymentNotFoundError{ID: id}
	}
	old := r.stored
	d, err := s.deployment(u.Address, found)
	if err != nil {
		return nil, err
	}
	if d.MinProtocol != old.MinProtocol || d.MaxProtocol != old.MaxProtocol {
		return nil, refuse(Invalid, "META0016", "an update deployment operation must provide an endpoint with the same services and handlers. The update tried to change the supported protocol versions from %d..=%d to %d..=%d",
			old.MinProtocol, old.MaxProtocol, d.MinProtocol, d.MaxProtocol)
	}
	d.ID, d.CreatedMs, d.Metadata, d.Headers = id, old.CreatedMs, old.Metadata, u.Headers
	if !u.Overwrite {
		d.Services = old.Services
		return s.replace(d, Overwritten), nil
	}
	for i := range d.Services {
		v := &d.Services[i]
		if sv := r.services[v.Name]; sv != nil {
			v.Revision = sv.rev.Revision
			if sv.rev.Type != v.Type {
				return nil, typeChanged(v.Name)
			}
			continue
		}
		v.Revision = 1
		if l := s.latest[v.Name]; l != nil {
			v.Revision = l.rev.Revision + 1
			if l.rev.Type != v.Type {
				return nil, typeChanged(v.Name)
			}
		}
	}
	return s.replace(d, Overwritten), nil
}

// Delete removes a deployment. Invocations that are pinned to it cannot go on; whether there are any is the caller's concern.
func (s *Schema) Delete(id ident.DeploymentID) (*Change, error) {
	r := s.deployments[id]
	if r == nil {
		return nil, &DeploymentNotFoundError{ID: id}
	}
	list := slices.DeleteFunc(slices.Clone(s.ordered), func(d *Deployment) bool { return d.ID == id })
	return &Change{Schema: s.With(s.version+1, list), Deployment: r.d}, nil
}

// ModifyService changes options of the latest revision of a service, until the next registration. Options that are nil in
// change stay as they are. The error is a *NotFoundError or a *ConflictError.
func (s *Schema) ModifyService(name string, change Overrides) (*Change, error) {
	sv := s.latest[name]
	if sv == nil {
		return nil, &NotFoundError{Service: name}
	}
	if change.WorkflowRetention != nil && sv.rev.Type != Workflow {
		return nil, refuse(Invalid, "", "modifying retention time for service type %s is unsupported", sv.rev.Type)
	}
	d := *s.deployments[sv.rev.Deployment].stored
	d.Services = slices.Clone(d.Services)
	for i := range d.Services {
		if d.Services[i].Name == name {
			d.Services[i].Overrides.merge(change)
		}
	}
	return s.replace(&d, Overwritten), nil
}

func (o *Overrides) merge(change Overrides) {
	pick(&o.Public, change.Public)
	pick(&o.InactivityTimeout, change.InactivityTimeout)
	pick(&o.AbortTimeout, change.AbortTimeout)
	pick(&o.JournalRetention, change.JournalRetention)
	pick(&o.IdempotencyRetention, change.IdempotencyRetention)
	pick(&o.WorkflowRetention, change.WorkflowRetention)
}

func pick[T any](dst **T, v *T) {
	if v != nil {
		*dst = v
	}
}

// replace makes the snapshot that has d instead of the deployment with its id, if there is one.
func (s *Schema) replace(d *Deployment, outcome Outcome) *Change {
	list := slices.DeleteFunc(slices.Clone(s.ordered), func(o *Deployment) bool { return o.ID == d.ID })
	n := s.With(s.version+1, append(list, d))
	return &Change{Schema: n, Deployment: n.deployments[d.ID].d, Outcome: outcome}
}

// deployment turns what was discovered into a deployment without identity and revisions.
func (s *Schema) deployment(addr Address, found Discovered) (*Deployment, error) {
	m := found.Manifest
	d := &Deployment{
		Address: addr, MinProtocol: uint32(m.MinProtocolVersion), MaxProtocol: uint32(m.MaxProtocolVersion), SDKVersion: found.SDKVersion,
	}
	if err := setTransport(d, m, found.HTTPVersion); err != nil {
		return nil, err
	}
	switch {
	case m.MinProtocolVersion > m.MaxProtocolVersion:
		return nil, refuse(Unsupported, "META0013", "received a bad response from the SDK: Expected min protocol version to be <= max protocol version. Received min protocol version '%d', max protocol version '%d'",
			m.MinProtocolVersion, m.MaxProtocolVersion)
	case m.MinProtocolVersion > MaxProtocol || m.MaxProtocolVersion < MinProtocol:
		return nil, refuse(Unsupported, "META0012", "unsupported service protocol versions: [%d, %d]. Supported versions by this runtime are [%d, %d]. Please upgrade the SDK and try registering again.",
			m.MinProtocolVersion, m.MaxProtocolVersion, MinProtocol, MaxProtocol)
	}
	byName := make(map[string]int)
	for i := range m.Services {
		v, err := service2revision(&m.Services[i])
		if err != nil {
			return nil, err
		}
		if j, twice := byName[v.Name]; twice { // the last one counts
			d.Services[j] = v
			continue
		}
		byName[v.Name] = len(d.Services)
		d.Services = append(d.Services, v)
	}
	slices.SortFunc(d.Services, func(a, b ServiceRevision) int { return cmp.Compare(a.Name, b.Name) })
	return d, nil
}

// setTransport fills in what the manifest says about how to talk to the deployment.
func setTransport(d *Deployment, m *Manifest, version HTTPVersion) error {
	switch m.ProtocolMode {
	case "BIDI_STREAM":
		d.ProtocolType = BidiStream
	case "REQUEST_RESPONSE":
		d.ProtocolType = RequestResponse
	default:
		return refuse(Unsupported, "META0013", "received a bad response from the SDK: missing protocol mode")
	}
	if a := d.Address.Lambda; a != nil {
		if d.ProtocolType == BidiStream {
			return refuse(Unsupported, "META0015", "the deployment announces bidirectional streaming, which AWS Lambda does not support. Configure the SDK's endpoint for Lambda.")
		}
		l := *a
		l.Compression = m.LambdaCompression
		d.Address.Lambda = &l
		return nil
	}
	h := *d.Address.HTTP
	h.Version = version
	d.Address.HTTP = &h
	return nil
}

var serviceTypes = map[string]ServiceType{"SERVICE": Service, "VIRTUAL_OBJECT": VirtualObject, "WORKFLOW": Workflow}

func service2revision(m *ManifestService) (v ServiceRevision, err error) {
	lower := strings.ToLower(m.Name)
	if strings.HasPrefix(lower, "restate") || lower == "openapi" {
		return v, refuse(Invalid, "META0005", "cannot insert/modify service '%s' as it contains a reserved name", m.Name)
	}
	v = ServiceRevision{Name: m.Name, Type: serviceTypes[m.Type], Documentation: m.Documentation, Metadata: m.Metadata, Overrides: m.overrides()}
	byName := make(map[string]int)
	for i := range m.Handlers {
		h, err := handler(m, v.Type, &m.Handlers[i])
		if err != nil {
			return v, err
		}
		if h.Type == WorkflowRun && h.Overrides.WorkflowRetention != nil {
			// It belongs to the workflow as a whole, and there an operator changes it.
			v.Overrides.WorkflowRetention, h.Overrides.WorkflowRetention = h.Overrides.WorkflowRetention, nil
		}
		if j, twice := byName[h.Name]; twice {
			v.Handlers[j] = h
			continue
		}
		byName[h.Name] = len(v.Handlers)
		v.Handlers = append(v.Handlers, h)
	}
	slices.SortFunc(v.Handlers, func(a, b Handler) int { return cmp.Compare(a.Name, b.Name) })
	return v, nil
}

func handler(service *ManifestService, st ServiceType, m *ManifestHandler) (h Handler, err error) {
	h = Handler{Name: m.Name, Documentation: m.Documentation, Metadata: m.Metadata, Overrides: m.overrides()}
	h.Overrides.WorkflowRetention = millis(m.WorkflowCompletionRetention)
	if h.Type, err = handlerType(st, m.Type); err != nil {
		return h, err
	}
	switch {
	case h.Type == WorkflowRun && m.IdempotencyRetention != nil:
		return h, refuse(Invalid, "", "%s sets the idempotency_retention, but it's a WORKFLOW handler", m.Name)
	case h.Type != WorkflowRun && m.WorkflowCompletionRetention != nil:
		return h, refuse(Invalid, "", "%s sets the workflow_completion_retention, but it's not a WORKFLOW handler", m.Name)
	case service.IngressPrivate != nil && *service.IngressPrivate && m.IngressPrivate != nil && !*m.IngressPrivate:
		return h, refuse(Invalid, "", "The service %s is private, but the %s is explicitly set as public. This is not supported. Please make the service public, and hide the individual handlers", service.Name, m.Name)
	}
	if h.Input, err = inputRule(service.Name, m); err != nil {
		return h, err
	}
	h.Output, err = outputRule(service.Name, m)
	return h, err
}

// handlerType resolves the type that a manifest gives, or leaves out, by the type of the service.
func handlerType(st ServiceType, t string) (HandlerType, error) {
	switch {
	case st == Service && (t == "" || t == "SHARED"):
		return Shared, nil
	case st == VirtualObject && (t == "" || t == "EXCLUSIVE"):
		return Exclusive, nil
	case st == VirtualObject && t == "SHARED":
		return Shared, nil
	case st == Workflow && (t == "" || t == "SHARED"): // also without a type: the run handler has to say so
		return Shared, nil
	case st == Workflow && t == "WORKFLOW":
		return WorkflowRun, nil
	}
	names := map[string]string{"SHARED": "Shared", "EXCLUSIVE": "Exclusive", "WORKFLOW": "Workflow"}
	return 0, refuse(Invalid, "", "invalid combination of service type and handler type '(%s, Some(%s))'", st, names[t])
}

func inputRule(service string, m *ManifestHandler) (r InputRule, err error) {
	in := m.Input
	if in == nil {
		return InputRule{Any: true}, nil
	}
	r.Required = in.Required != nil && *in.Required
	if in.ContentType == nil {
		return r, nil // a schema without content type says nothing
	}
	r.ContentType = *in.ContentType
	if err := checkContentType(r.ContentType); err != "" {
		return r, refuse(Invalid, "", "the handler '%s' input content-type is not valid: can't parse the content-type '%s': %s", m.Name, r.ContentType, err)
	}
	r.JSONSchema, err = keepSchema(in.JSONSchema, service+"/"+m.Name+" input")
	return r, err
}

func outputRule(service string, m *ManifestHandler) (r OutputRule, err error) {
	out := m.Output
	if out == nil {
		return OutputRule{ContentType: "application/json"}, nil
	}
	if out.ContentType == nil {
		return r, nil
	}
	r.ContentType = *out.ContentType
	r.SetIfEmpty = out.SetContentTypeIfEmpty != nil && *out.SetContentTypeIfEmpty
	for i := 0; i < len(r.ContentType); i++ {
		if c := r.ContentType[i]; c < ' ' || c > '~' {
			return r, refuse(Invalid, "", "the handler '%s' output content-type is not valid: it contains characters that a header cannot have", m.Name)
		}
	}
	r.JSONSchema, err = keepSchema(out.JSONSchema, service+"/"+m.Name+" output")
	return r, err
}

// keepSchema checks a JSON schema; an absent one and null are nil.
func keepSchema(raw json.RawMessage, where string) (json.RawMessage, error) {
	if len(raw) == 0 || string(raw) == "null" {
		return nil, nil
	}
	if err := checkJSONSchema(raw); err != nil {
		return nil, refuse(Invalid, "", "the json schema for %s is invalid: %s", where, err)
	}
	return raw, nil
}

// checkContentType says what is wrong with an input's pattern; empty when nothing is.
func checkContentType(s string) string {
	t, sub, ok := strings.Cut(s, "/")
	switch {
	case !ok || t == "" || sub == "" || strings.ContainsAny(sub, "/ ;") || strings.ContainsAny(t, " ;"):
		return "expected type/subtype"
	case t == "*" && sub != "*":
		return "the wildcard format */subType is not supported"
	}
	return ""
}
