package main

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// healthTimeout bounds each question of the health command.
const healthTimeout = 5 * time.Second

func (a *app) healthCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "health", Short: "Ask a server whether it is well", Args: cobra.NoArgs,
		Long: `Ask a server's ingress and admin API whether they are well. The exit code is 1 if one of them is not, so this
can be used as a container's health check.`,
		RunE: func(cmd *cobra.Command, _ []string) error { return c.health(cmd.Context()) },
	}
	a.clientFlags(cmd, &c)
	return cmd
}

type healthReport struct {
	Part   string `json:"part"`
	URL    string `json:"url"`
	OK     bool   `json:"ok"`
	Detail string `json:"detail,omitempty"`
}

func (c *client) health(ctx context.Context) error {
	admin := c.probe(ctx, "admin", c.admin, "/health", nil)
	if admin.OK {
		admin.Detail = c.probe(ctx, "admin", c.admin, "/version", versionsOf).Detail
	}
	reports := []healthReport{admin, c.probe(ctx, "ingress", c.ingress, "/restate/health", servicesOf)}
	rows, failed := [][]string{}, false
	for _, r := range reports {
		state := "ok"
		if !r.OK {
			state, failed = "FAILED", true
		}
		rows = append(rows, []string{r.Part, state, r.URL, r.Detail})
	}
	var err error
	if c.json {
		err = printJSON(c.app.out, reports)
	} else {
		err = table(c.app.out, []string{"PART", "STATE", "URL", "DETAIL"}, rows)
	}
	if failed {
		return errors.Join(err, exitCode(1))
	}
	return err
}

func (c *client) probe(ctx context.Context, part, base, path string, detail func(*answer) string) healthReport {
	ctx, cancel := context.WithTimeout(ctx, healthTimeout)
	defer cancel()
	r := healthReport{Part: part, URL: base}
	ans, err := c.do(ctx, http.MethodGet, base+path, nil, nil)
	if err != nil {
		r.Detail = err.Error()
		return r
	}
	r.OK = true
	if detail != nil {
		r.Detail = detail(ans)
	}
	return r
}

// versionsOf is the version of the server, and that of the interface that it speaks.
func versionsOf(ans *answer) string {
	var parts []string
	if own, ok := strings.CutPrefix(ans.header.Get("Server"), "perdure/"); ok {
		parts = append(parts, "perdure "+own)
	}
	var v struct{ Version string }
	if json.Unmarshal(ans.body, &v) == nil && v.Version != "" {
		parts = append(parts, "speaks the admin API of Restate "+v.Version)
	}
	return strings.Join(parts, ", ")
}

func servicesOf(ans *answer) string {
	var s struct{ Services []string }
	if json.Unmarshal(ans.body, &s) != nil {
		return ""
	}
	if len(s.Services) == 0 {
		return "no services registered"
	}
	return "services: " + strings.Join(s.Services, ", ")
}
