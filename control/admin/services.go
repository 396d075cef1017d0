package admin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"

	"perdure/control/ident"
	"perdure/control/schema"
)

func (c *call) service() (*schema.ServiceRevision, error) {
	name := c.param("service")
	v, err := c.a.deps.Registry.Current().Service(name)
	if err != nil {
		return nil, serviceNotFound(name)
	}
	return v, nil
}

func (c *call) listServices() error {
	s := c.a.deps.Registry.Current()
	list := []serviceJSON{}
	for _, name := range s.ServiceNames() {
		if v, err := s.Service(name); err == nil {
			list = append(list, serviceOf(v))
		}
	}
	c.a.respond(c.w, c.r, http.StatusOK, struct {
		Services []serviceJSON `json:"services"`
	}{list})
	return nil
}

func (c *call) getService() error {
	v, err := c.service()
	if err != nil {
		return err
	}
	c.a.respond(c.w, c.r, http.StatusOK, serviceOf(v))
	return nil
}

func (c *call) listHandlers() error {
	v, err := c.service()
	if err != nil {
		return err
	}
	c.a.respond(c.w, c.r, http.StatusOK, struct {
		Handlers []handlerJSON `json:"handlers"`
	}{serviceOf(v).Handlers})
	return nil
}

func (c *call) getHandler() error {
	service, handler := c.param("service"), c.param("handler")
	h, err := c.a.deps.Registry.Current().Handler(service, handler)
	if err != nil {
		return handlerNotFound(service, handler)
	}
	c.a.respond(c.w, c.r, http.StatusOK, handlerOf(h))
	return nil
}

func (c *call) serviceOpenAPI() error {
	v, err := c.service()
	if err != nil {
		return err
	}
	c.a.respond(c.w, c.r, http.StatusOK, v.OpenAPI(c.a.cfg.IngressURL))
	return nil
}

type modifyServiceRequest struct {
	Public               *bool   `json:"public,omitempty"`
	IdempotencyRetention *string `json:"idempotency_retention,omitempty"`
	WorkflowRetention    *string `json:"workflow_completion_retention,omitempty"`
	JournalRetention     *string `json:"journal_retention,omitempty"`
	InactivityTimeout    *string `json:"inactivity_timeout,omitempty"`
	AbortTimeout         *string `json:"abort_timeout,omitempty"`
}

func (r *modifyServiceRequest) overrides() (o schema.Overrides, err error) {
	o.Public = r.Public
	var errs [5]error
	o.IdempotencyRetention, errs[0] = parseSpan("idempotency_retention", r.IdempotencyRetention)
	o.WorkflowRetention, errs[1] = parseSpan("workflow_completion_retention", r.WorkflowRetention)
	o.JournalRetention, errs[2] = parseSpan("journal_retention", r.JournalRetention)
	o.InactivityTimeout, errs[3] = parseSpan("inactivity_timeout", r.InactivityTimeout)
	o.AbortTimeout, errs[4] = parseSpan("abort_timeout", r.AbortTimeout)
	for _, e := range errs {
		if e != nil {
			return o, e
		}
	}
	return o, nil
}

func (c *call) modifyService() error {
	var req modifyServiceRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	change, err := req.overrides()
	if err != nil {
		return err
	}
	if change == (schema.Overrides{}) {
		return c.getService()
	}
	name := c.param("service")
	ctx, cancel := c.ctx()
	defer cancel()
	done, err := c.a.deps.Registry.Update(ctx, func(s *schema.Schema) (*schema.Change, error) { return s.ModifyService(name, change) })
	var missing *schema.NotFoundError
	switch {
	case errors.As(err, &missing):
		return notInRegistry("service with name '" + name + "'")
	case err != nil:
		return schemaError(err)
	}
	v, err := done.Schema.Service(name)
	if err != nil {
		return err
	}
	c.a.respond(c.w, c.r, http.StatusOK, serviceOf(v))
	return nil
}

type patchStateRequest struct {
	Version   *string               `json:"version,omitempty"`
	ObjectKey *string               `json:"object_key"`
	Scope     *string               `json:"scope,omitempty"`
	NewState  *map[string]byteArray `json:"new_state"`
}

// patchState replaces the state of a key. It is only accepted here: carried out in the order of the key's queue, and dropped
// when the version does not fit by then. An empty state may also be given to services that are not registered any more.
func (c *call) patchState() error {
	var req patchStateRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	switch {
	case req.ObjectKey == nil:
		return missingField("object_key")
	case req.NewState == nil:
		return missingField("new_state")
	case req.Scope != nil:
		return &apiError{status: http.StatusInternalServerError, message: "bad scope: scopes are not supported by this server"}
	}
	if n := len(*req.ObjectKey); n > ident.MaxName {
		return badField("object_key", tooLong(n))
	}
	p := StatePatch{Service: c.param("service"), Key: *req.ObjectKey, Version: req.Version, State: make(map[string][]byte, len(*req.NewState))}
	v, err := c.service()
	switch {
	case err != nil && len(*req.NewState) > 0:
		return err
	case err == nil && !v.Type.Keyed():
		return badRequest("Cannot modify state for service type " + v.Type.String())
	}
	for key, list := range *req.NewState {
		if n := len(key); n > ident.MaxName {
			return badField("new_state", tooLong(n))
		}
		p.State[key] = list
	}
	ctx, cancel := c.ctx()
	defer cancel()
	if err := c.a.deps.Invocations.PatchState(ctx, p); err != nil {
		return routingError(err)
	}
	c.a.respondEmpty(c.w, c.r, http.StatusAccepted)
	return nil
}

func tooLong(n int) error {
	return fmt.Errorf("a key is %d bytes long, at most %d are allowed", n, ident.MaxName)
}

// byteArray is bytes as a JSON array of numbers 0 to 255, or as the text of a string.
type byteArray []byte

// UnmarshalJSON reads the array without making an object of each number.
func (b *byteArray) UnmarshalJSON(raw []byte) error {
	if raw[0] == '"' {
		var s string
		err := json.Unmarshal(raw, &s)
		*b = []byte(s)
		return err
	}
	if raw[0] != '[' {
		return errors.New("invalid type, expected an array of bytes")
	}
	out := []byte{}
	raw = bytes.TrimSpace(raw[1 : len(raw)-1])
	for len(raw) > 0 {
		var item []byte
		item, raw, _ = bytes.Cut(raw, []byte{','})
		n, err := strconv.ParseUint(string(bytes.TrimSpace(item)), 10, 8)
		if err != nil {
			return errors.New("invalid value: expected u8")
		}
		out = append(out, byte(n))
	}
	*b = out
	return nil
}
