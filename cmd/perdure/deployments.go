package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"perdure/control/schema"
)

type serviceMetadata struct {
	Name         string `json:"name"`
	Type         string `json:"ty"`
	Revision     int    `json:"revision"`
	DeploymentID string `json:"deployment_id"`
	Public       bool   `json:"public"`
	Handlers     []struct {
		Name string `json:"name"`
		Type string `json:"ty"`
	} `json:"handlers"`
}

type deploymentMetadata struct {
	ID           string `json:"id"`
	URI          string `json:"uri"`
	ARN          string `json:"arn"`
	ProtocolType string `json:"protocol_type"`
	HTTPVersion  string `json:"http_version"`
	CreatedAt    string `json:"created_at"`
	SDKVersion   string `json:"sdk_version"`
	Min          int    `json:"min_protocol_version"`
	Max          int    `json:"max_protocol_version"`
	Services     []serviceMetadata
}

func (d *deploymentMetadata) address() string {
	if d.ARN != "" {
		return d.ARN
	}
	return d.URI
}

func (d *deploymentMetadata) transport() string {
	if d.ARN != "" {
		return "Lambda"
	}
	return strings.TrimSpace(d.HTTPVersion + " " + d.ProtocolType)
}

func (a *app) deploymentsCommand() *cobra.Command {
	c := group("deployments", "Register, list and remove the endpoints that serve your services",
		a.registerCommand(), a.listDeploymentsCommand(), a.getDeploymentCommand(), a.removeDeploymentCommand())
	c.Aliases = []string{"deployment", "dp"}
	return c
}

// registration are the flags of deployments register.
type registration struct {
	lambda, role         string
	force, breaking, dry bool
	http11               bool
	concurrency          int
	headers, metadata    []string
}

func (a *app) registerCommand() *cobra.Command {
	var c client
	var r registration
	cmd := &cobra.Command{
		Use:     "register URL | register --lambda ARN",
		Aliases: []string{"add"},
		Short:   "Tell the server where services are",
		Long: `Tell the server where services are: it asks the endpoint what it serves and sends new invocations there from
then on. Invocations in progress stay with the deployment where they began. A known endpoint is left as it is; change the
URL (or the version of the function) with each new version of the code, or use --force while developing.`,
		Example: `  perdure deployments register http://localhost:9080
  perdure deployments register https://greeter.internal/v7 --extra-header authorization="Bearer abc"
  perdure deployments register --lambda arn:aws:lambda:eu-central-1:123456789012:function:greeter:7`,
		Args: func(_ *cobra.Command, args []string) error {
			if (r.lambda == "") == (len(args) == 0) || len(args) > 1 {
				return errors.New("deployments register needs one URL or --lambda ARN")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			body, err := r.request(args)
			if err != nil {
				return err
			}
			return c.register(cmd.Context(), body, r.dry)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.lambda, "lambda", "", "`ARN` of a function with its version or alias, instead of a URL")
	f.StringVar(&r.role, "assume-role-arn", "", "`ARN` of the role to call the function with")
	f.IntVar(&r.concurrency, "concurrency", 0, "`number` of calls of the function that may run at once")
	f.BoolVar(&r.force, "force", false, "overwrite the deployment if the endpoint is known; invocations in progress may break")
	f.BoolVar(&r.breaking, "breaking", false, "accept that a service changes its type")
	f.BoolVar(&r.dry, "dry-run", false, "only say what would happen")
	f.BoolVar(&r.http11, "use-http1.1", false, "call the endpoint with HTTP/1.1")
	f.StringArrayVar(&r.headers, "extra-header", nil, "`name=value` to send with each request to the endpoint; can be repeated")
	f.StringArrayVar(&r.metadata, "metadata", nil, "`name=value` to keep with the deployment; can be repeated")
	a.clientFlags(cmd, &c)
	return cmd
}

// request is the body of the registration.
func (r *registration) request(args []string) (map[string]any, error) {
	body := map[string]any{"force": r.force, "breaking": r.breaking, "dry_run": r.dry}
	arn := r.lambda
	if arn == "" && strings.HasPrefix(args[0], "arn:") {
		arn = args[0]
	}
	switch {
	case arn != "" && r.http11:
		return nil, usagef("--use-http1.1 makes no sense for a Lambda function")
	case arn != "":
		body["arn"] = arn
		if r.role != "" {
			body["assume_role_arn"] = r.role
		}
	case r.role != "":
		return nil, usagef("--assume-role-arn makes no sense for a URL")
	case r.concurrency != 0:
		return nil, usagef("--concurrency makes no sense for a URL")
	default:
		u, err := parseURL(args[0])
		if err != nil {
			return nil, &usageError{err}
		}
		body["uri"], body["use_http_11"] = u.String(), r.http11
	}
	if r.concurrency < 0 {
		return nil, usagef("--concurrency is %d: must be at least 1", r.concurrency)
	}
	if r.concurrency > 0 {
		r.metadata = append(r.metadata, fmt.Sprintf("%s=%d", schema.LambdaConcurrencyKey, r.concurrency))
	}
	for _, m := range []struct {
		flag, key string
		pairs     []string
	}{{"--extra-header", "additional_headers", r.headers}, {"--metadata", "metadata", r.metadata}} {
		pairs, err := keyValues(m.flag, m.pairs)
		if err != nil {
			return nil, err
		}
		if len(pairs) > 0 {
			body[m.key] = pairs
		}
	}
	return body, nil
}

func keyValues(flag string, pairs []string) (map[string]string, error) {
	m := map[string]string{}
	for _, p := range pairs {
		k, v, ok := strings.Cut(p, "=")
		if !ok || k == "" {
			return nil, usagef("%s %q: write it as name=value", flag, p)
		}
		m[k] = v
	}
	return m, nil
}

func (c *client) register(ctx context.Context, body map[string]any, dry bool) error {
	var out struct {
		ID       string            `json:"id"`
		Services []serviceMetadata `json:"services"`
	}
	ans, err := c.adminDo(ctx, http.MethodPost, "/deployments", body, &out)
	if err != nil {
		return err
	}
	if c.json {
		return rawJSON(c.app.out, ans.body)
	}
	switch {
	case dry:
		fmt.Fprintln(c.app.out, "This would be registered (dry run):")
	case ans.status == http.StatusCreated:
		fmt.Fprintf(c.app.out, "Registered deployment %s:\n", out.ID)
	case body["force"] == true:
		fmt.Fprintf(c.app.out, "Overwrote deployment %s:\n", out.ID)
	default:
		fmt.Fprintf(c.app.out, "Nothing changed, the endpoint is known as deployment %s (--force overwrites it):\n", out.ID)
	}
	if len(out.Services) == 0 {
		_, err := fmt.Fprintln(c.app.out, "It serves nothing: bind services to the SDK's endpoint, and register it again with --force.")
		return err
	}
	return c.printServices(out.Services)
}

func (c *client) printServices(services []serviceMetadata) error {
	slices.SortFunc(services, func(a, b serviceMetadata) int { return strings.Compare(a.Name, b.Name) })
	rows := make([][]string, len(services))
	for i, s := range services {
		var handlers []string
		for _, h := range s.Handlers {
			handlers = append(handlers, h.Name)
		}
		access := "public"
		if !s.Public {
			access = "private"
		}
		rows[i] = []string{s.Name, s.Type, strconv.Itoa(s.Revision), access, strings.Join(handlers, ", ")}
	}
	return table(c.app.out, []string{"SERVICE", "TYPE", "REVISION", "ACCESS", "HANDLERS"}, rows)
}

func (a *app) listDeploymentsCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the deployments", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out struct {
				Deployments []deploymentMetadata `json:"deployments"`
			}
			ans, err := c.adminDo(cmd.Context(), http.MethodGet, "/deployments", nil, &out)
			if err != nil {
				return err
			}
			if c.json {
				return rawJSON(a.out, ans.body)
			}
			return c.printDeployments(out.Deployments)
		},
	}
	a.clientFlags(cmd, &c)
	return cmd
}

func (c *client) printDeployments(ds []deploymentMetadata) error {
	if len(ds) == 0 {
		_, err := fmt.Fprintln(c.app.out, "There are no deployments yet. Register one: perdure deployments register http://localhost:9080")
		return err
	}
	rows := make([][]string, len(ds))
	for i, d := range ds {
		var services []string
		for _, s := range d.Services {
			services = append(services, fmt.Sprintf("%s@%d", s.Name, s.Revision))
		}
		rows[i] = []string{d.ID, d.address(), d.transport(), d.CreatedAt, strings.Join(services, ", ")}
	}
	return table(c.app.out, []string{"DEPLOYMENT", "ADDRESS", "TRANSPORT", "CREATED", "SERVICES"}, rows)
}

func (a *app) getDeploymentCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "get ID", Aliases: []string{"describe"}, Short: "Show one deployment and its services", Args: argsOf(1, 1, "the id of one deployment"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var d deploymentMetadata
			ans, err := c.adminDo(cmd.Context(), http.MethodGet, "/deployments/"+url.PathEscape(args[0]), nil, &d)
			if err != nil {
				return err
			}
			if c.json {
				return rawJSON(a.out, ans.body)
			}
			fmt.Fprintf(a.out, "Deployment  %s\nAddress     %s\nTransport   %s\nSDK         %s, service protocol %d to %d\nCreated     %s\n\n",
				d.ID, d.address(), d.transport(), orDash(d.SDKVersion), d.Min, d.Max, d.CreatedAt)
			return c.printServices(d.Services)
		},
	}
	a.clientFlags(cmd, &c)
	return cmd
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func (a *app) removeDeploymentCommand() *cobra.Command {
	var c client
	var force bool
	cmd := &cobra.Command{
		Use: "remove ID", Aliases: []string{"rm", "delete"}, Short: "Remove a deployment", Args: argsOf(1, 1, "the id of one deployment"),
		Long: `Remove a deployment. Invocations that began there can then not go on: without --force the server refuses unless it
is sure that there are none.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			path := "/deployments/" + url.PathEscape(args[0])
			if force {
				path += "?force=true"
			}
			_, err := c.adminDo(cmd.Context(), http.MethodDelete, path, nil, nil)
			var api *apiError
			if errors.As(err, &api) && api.Status == http.StatusNotImplemented {
				return fmt.Errorf("%[1]s is not removed: either it does not exist (perdure deployments list), or it serves the latest revision of a service, "+
					"or invocations still need it (perdure invocations list --deployment %[1]s); --force removes it all the same", args[0])
			}
			if err != nil {
				return err
			}
			return c.done("Removed", args[0])
		},
	}
	cmd.Flags().BoolVar(&force, "force", false, "remove it although invocations may be pinned to it")
	a.clientFlags(cmd, &c)
	return cmd
}

// done reports the end of an operation that has no result.
func (c *client) done(what, id string) error {
	if c.json {
		return printJSON(c.app.out, map[string]string{"id": id, "result": strings.ToLower(what)})
	}
	_, err := fmt.Fprintf(c.app.out, "%s %s\n", what, id)
	return err
}

func (a *app) servicesCommand() *cobra.Command {
	var c client
	list := &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the services", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var out struct {
				Services []serviceMetadata `json:"services"`
			}
			ans, err := c.adminDo(cmd.Context(), http.MethodGet, "/services", nil, &out)
			if err != nil {
				return err
			}
			if c.json {
				return rawJSON(a.out, ans.body)
			}
			if len(out.Services) == 0 {
				_, err := fmt.Fprintln(a.out, "There are no services yet. Register a deployment: perdure deployments register http://localhost:9080")
				return err
			}
			return c.printServices(out.Services)
		},
	}
	a.clientFlags(list, &c)
	cmd := group("services", "See the services that can be invoked", list)
	cmd.Aliases = []string{"service", "svc"}
	return cmd
}
