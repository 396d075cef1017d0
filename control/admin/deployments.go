package admin

import (
	"context"
	"errors"
	"maps"
	"net/http"
	"strings"

	"perdure/control/ident"
	"perdure/control/schema"
)

type registerRequest struct {
	URI           *string           `json:"uri,omitempty"`
	ARN           *string           `json:"arn,omitempty"`
	AssumeRoleARN *string           `json:"assume_role_arn,omitempty"`
	Headers       map[string]string `json:"additional_headers,omitempty"`
	Metadata      map[string]string `json:"metadata,omitempty"`
	UseHTTP11     bool              `json:"use_http_11,omitempty"`
	Breaking      bool              `json:"breaking,omitempty"`
	Force         *bool             `json:"force,omitempty"`
	DryRun        bool              `json:"dry_run,omitempty"`
	Auth          *struct{}         `json:"auth,omitempty"`
}

func (c *call) register() error {
	var req registerRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	r, err := c.registration(&req)
	if err != nil {
		return err
	}
	s := c.a.deps.Registry.Current()
	if old := s.Find(r.Address, r.Headers, r.RoutingHeaders); old != nil && !r.Force {
		return c.registered(old, schema.Unchanged)
	}
	ctx, cancel := c.ctx()
	defer cancel()
	found, err := c.a.deps.Discoverer.Discover(ctx, r.Address, r.Headers)
	if err != nil {
		return schemaError(err)
	}
	id, now := ident.DeploymentID(c.a.ulid()), uint64(c.a.deps.Now().UnixMilli())
	apply := func(s *schema.Schema) (*schema.Change, error) { return s.Register(*r, *found, now, id) }
	change, err := c.change(ctx, s, req.DryRun, apply)
	if err != nil {
		return schemaError(err)
	}
	if !req.DryRun && change.Outcome != schema.Unchanged {
		c.a.deps.Log.Info("deployment registered", "deployment", change.Deployment.ID.String(), "address", change.Deployment.Address.String())
	}
	return c.registered(change.Deployment, change.Outcome)
}

// change applies a change to the schema, or for a dry run only works out what became of s.
func (c *call) change(ctx context.Context, s *schema.Schema, dry bool, apply func(*schema.Schema) (*schema.Change, error)) (*schema.Change, error) {
	if dry {
		return apply(s)
	}
	return c.a.deps.Registry.Update(ctx, apply)
}

func (c *call) registration(req *registerRequest) (*schema.Registration, error) {
	r := &schema.Registration{Metadata: req.Metadata, Breaking: req.Breaking, Force: c.version < 3, RoutingHeaders: c.a.cfg.RoutingHeaders}
	if req.Force != nil {
		r.Force = *req.Force
	}
	var err error
	if r.Headers, err = additionalHeaders(req.Headers); err != nil {
		return nil, err
	}
	switch {
	case req.URI != nil:
		if req.Auth != nil {
			return nil, errAuth
		}
		r.Address.HTTP, err = httpAddress(*req.URI, req.UseHTTP11)
	case req.ARN != nil:
		r.Address.Lambda, err = lambdaAddress(*req.ARN, req.AssumeRoleARN)
	default:
		err = mismatch(errors.New("data did not match any variant of untagged enum RegisterDeploymentRequest"))
	}
	return r, err
}

func httpAddress(uri string, http11 bool) (*schema.HTTPAddress, error) {
	n, err := schema.NormalizeURI(uri)
	switch {
	case errors.Is(err, schema.ErrNotURI):
		return nil, mismatch(err)
	case err != nil:
		return nil, badField("uri", err)
	}
	return &schema.HTTPAddress{URI: n, UseHTTP11: http11}, nil
}

func lambdaAddress(arn string, role *string) (*schema.LambdaAddress, error) {
	if err := schema.CheckARN(arn); err != nil {
		return nil, badField("arn", err)
	}
	l := &schema.LambdaAddress{ARN: arn}
	if role != nil {
		l.AssumeRoleARN = *role
	}
	return l, nil
}

// additionalHeaders checks headers that are to go with requests to a deployment and gives their names in lower case.
func additionalHeaders(in map[string]string) (map[string]string, error) {
	if len(in) == 0 {
		return nil, nil
	}
	out := make(map[string]string, len(in))
	for name, value := range in {
		if err := schema.CheckHeader(name, value); err != nil {
			return nil, badField("additional_headers", err)
		}
		out[strings.ToLower(name)] = value
	}
	return out, nil
}

// registered answers a registration. Version 2 told overwriting by 201 as well, and refused what is registered already.
func (c *call) registered(d *schema.Deployment, outcome schema.Outcome) error {
	status := http.StatusOK
	switch {
	case outcome == schema.Unchanged && c.version < 3:
		return alreadyExists(d.ID)
	case outcome == schema.Created || c.version < 3:
		status = http.StatusCreated
	}
	c.w.Header().Set("Location", "deployments/"+d.ID.String())
	c.a.respond(c.w, c.r, status, registeredOf(d))
	return nil
}

func (c *call) listDeployments() error {
	list := []deploymentJSON[serviceRefJSON]{}
	for _, d := range c.a.deps.Registry.Current().Deployments() {
		list = append(list, summaryOf(d))
	}
	c.a.respond(c.w, c.r, http.StatusOK, struct {
		Deployments []deploymentJSON[serviceRefJSON] `json:"deployments"`
	}{list})
	return nil
}

func (c *call) deploymentID() (ident.DeploymentID, error) {
	s := c.param("deployment")
	id, err := ident.ParseDeploymentID(s)
	if err != nil {
		return id, badPathID("deployment", s, err)
	}
	return id, nil
}

func (c *call) getDeployment() error {
	id, err := c.deploymentID()
	if err != nil {
		return err
	}
	d, err := c.a.deps.Registry.Current().Deployment(id)
	if err != nil {
		return schemaError(err)
	}
	c.a.respond(c.w, c.r, http.StatusOK, detailOf(d))
	return nil
}

type updateRequest struct {
	URI           *string            `json:"uri,omitempty"`
	ARN           *string            `json:"arn,omitempty"`
	AssumeRoleARN *string            `json:"assume_role_arn,omitempty"`
	Headers       *map[string]string `json:"additional_headers,omitempty"`
	UseHTTP11     *bool              `json:"use_http_11,omitempty"`
	Overwrite     bool               `json:"overwrite,omitempty"`
	DryRun        bool               `json:"dry_run,omitempty"`
}

func (r *updateRequest) empty() bool {
	return r.URI == nil && r.ARN == nil && r.AssumeRoleARN == nil && r.Headers == nil && r.UseHTTP11 == nil && !r.Overwrite
}

func (c *call) putDeployment() error {
	if c.version > 2 {
		return errPut
	}
	return c.updateDeployment()
}

func (c *call) updateDeployment() error {
	id, err := c.deploymentID()
	if err != nil {
		return err
	}
	var req updateRequest
	if err := c.decode(&req); err != nil {
		return err
	}
	s := c.a.deps.Registry.Current()
	old, err := s.Deployment(id)
	if err != nil {
		return schemaError(err)
	}
	if req.empty() {
		c.a.respond(c.w, c.r, http.StatusOK, detailOf(old))
		return nil
	}
	u, err := update(old, &req)
	if err != nil {
		return err
	}
	ctx, cancel := c.ctx()
	defer cancel()
	found, err := c.a.deps.Discoverer.Discover(ctx, u.Address, u.Headers)
	if err != nil {
		return schemaError(err)
	}
	apply := func(s *schema.Schema) (*schema.Change, error) { return s.Update(id, *u, *found) }
	change, err := c.change(ctx, s, req.DryRun, apply)
	if err != nil {
		return schemaError(err)
	}
	c.a.respond(c.w, c.r, http.StatusOK, detailOf(change.Deployment))
	return nil
}

// update is what a request makes of a deployment: what it does not mention stays.
func update(old *schema.Deployment, req *updateRequest) (*schema.Update, error) {
	u := &schema.Update{Address: old.Address, Headers: old.Headers, Overwrite: req.Overwrite}
	var err error
	switch {
	case req.URI != nil:
		http11 := old.Address.HTTP != nil && old.Address.HTTP.UseHTTP11
		if req.UseHTTP11 != nil {
			http11 = *req.UseHTTP11
		}
		u.Address = schema.Address{}
		u.Address.HTTP, err = httpAddress(*req.URI, http11)
	case req.ARN != nil:
		u.Address = schema.Address{}
		u.Address.Lambda, err = lambdaAddress(*req.ARN, req.AssumeRoleARN)
	case req.AssumeRoleARN != nil && old.Address.Lambda == nil:
		return nil, errUpdateLambda
	case req.UseHTTP11 != nil && old.Address.HTTP == nil:
		return nil, errUpdateHTTP
	case req.AssumeRoleARN != nil:
		u.Address.Lambda, err = lambdaAddress(old.Address.Lambda.ARN, req.AssumeRoleARN)
	case req.UseHTTP11 != nil:
		u.Address.HTTP, err = httpAddress(old.Address.HTTP.URI, *req.UseHTTP11)
	}
	if err == nil && req.Headers != nil {
		u.Headers, err = additionalHeaders(maps.Clone(*req.Headers))
	}
	return u, err
}

// deleteDeployment removes a deployment. Without force it must be drained: not the latest of any service, and no invocation
// pinned to it. What is not drained is answered 501 as the published interface does, which knows only forced removal.
func (c *call) deleteDeployment() error {
	id, err := c.deploymentID()
	if err != nil {
		return err
	}
	force := false
	if q := c.r.URL.Query(); q.Has("force") {
		if force = q.Get("force") == "true"; !force && q.Get("force") != "false" {
			return badQueryString("force", "provided string was not `true` or `false`")
		}
	}
	ctx, cancel := c.ctx()
	defer cancel()
	if !force {
		drained, err := c.drained(id)
		if err != nil {
			return routingError(err)
		}
		if !drained {
			return emptyError(http.StatusNotImplemented)
		}
	}
	_, err = c.a.deps.Registry.Update(ctx, func(s *schema.Schema) (*schema.Change, error) {
		if !force && isLatest(s, id) {
			return nil, emptyError(http.StatusNotImplemented)
		}
		return s.Delete(id)
	})
	var missing *schema.DeploymentNotFoundError
	switch {
	case errors.As(err, &missing):
		return notInRegistry("deployment with id '" + id.String() + "'")
	case err != nil:
		return err
	}
	c.a.deps.Log.Info("deployment removed", "deployment", id.String(), "force", force)
	c.a.respondEmpty(c.w, c.r, http.StatusAccepted)
	return nil
}

// drained reports whether nothing needs the deployment any more. An unknown one counts as not drained.
func (c *call) drained(id ident.DeploymentID) (bool, error) {
	s := c.a.deps.Registry.Current()
	if _, err := s.Deployment(id); err != nil || isLatest(s, id) {
		return false, nil
	}
	ctx, cancel := c.ctx()
	defer cancel()
	n, err := c.a.deps.Invocations.Pinned(ctx, id)
	return n == 0, err
}

// isLatest reports whether new invocations of some service go to the deployment.
func isLatest(s *schema.Schema, id ident.DeploymentID) bool {
	d, err := s.Deployment(id)
	if err != nil {
		return false
	}
	for i := range d.Services {
		if l := s.Latest(d.Services[i].Name); l != nil && l.ID == id {
			return true
		}
	}
	return false
}
