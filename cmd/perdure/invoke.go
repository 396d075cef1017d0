package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
)

// invocation are the flags of invoke.
type invocation struct {
	json           string
	send           bool
	delay          string
	idempotencyKey string
	headers        []string
}

func (a *app) invokeCommand() *cobra.Command {
	var c client
	var i invocation
	cmd := &cobra.Command{
		Use:   "invoke SERVICE[/KEY]/HANDLER",
		Short: "Call a handler and print its result",
		Long: `Call a handler and print its result. A virtual object or workflow needs a key between service and handler; it may
contain slashes. The exit code is 1 when the invocation fails.`,
		Example: `  perdure invoke Greeter/Greet --json '"Ada"'
  perdure invoke Counter/visits/Add --json 1 --idempotency-key 4711
  perdure invoke Report/Build --send --delay 1h --json - < request.json`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) != 1 {
				return errors.New("invoke needs one target: SERVICE/HANDLER or SERVICE/KEY/HANDLER")
			}
			if _, err := targetPath(args[0]); err != nil {
				return err
			}
			if i.delay != "" && !i.send {
				return errors.New("--delay needs --send: a call waits for its result")
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.invoke(cmd.Context(), args[0], cmd.Flags().Changed("json"), &i)
		},
	}
	f := cmd.Flags()
	f.StringVarP(&i.json, "json", "j", "", "`body` to send as JSON; - reads it from standard input")
	f.BoolVar(&i.send, "send", false, "do not wait for the result, print the invocation's id")
	f.StringVar(&i.delay, "delay", "", "with --send: run after this `duration`")
	f.StringVar(&i.idempotencyKey, "idempotency-key", "", "`key` under which the same call is executed only once")
	f.StringArrayVar(&i.headers, "header", nil, "`name=value` to send as a header; can be repeated")
	a.clientFlags(cmd, &c)
	return cmd
}

// targetPath turns SERVICE[/KEY]/HANDLER into the part of the URL's path after call or send.
func targetPath(target string) (string, error) {
	service, rest, ok := strings.Cut(target, "/")
	if !ok || service == "" || rest == "" {
		return "", fmt.Errorf("%q is no target: write SERVICE/HANDLER or SERVICE/KEY/HANDLER", target)
	}
	handler := rest[strings.LastIndexByte(rest, '/')+1:]
	if handler == "" {
		return "", fmt.Errorf("%q names no handler: write SERVICE/HANDLER or SERVICE/KEY/HANDLER", target)
	}
	path := url.PathEscape(service) + "/"
	if key, keyed := strings.CutSuffix(rest, "/"+handler); keyed {
		path += url.PathEscape(key) + "/"
	}
	return path + url.PathEscape(handler), nil
}

func (c *client) invoke(ctx context.Context, target string, hasBody bool, i *invocation) error {
	path, err := targetPath(target)
	if err != nil {
		return err
	}
	header := http.Header{}
	pairs, err := keyValues("--header", i.headers)
	if err != nil {
		return err
	}
	for k, v := range pairs {
		header.Set(k, v)
	}
	if i.idempotencyKey != "" {
		header.Set("Idempotency-Key", i.idempotencyKey)
	}
	var body []byte
	if hasBody {
		if body, err = c.body(i.json); err != nil {
			return err
		}
		header.Set("Content-Type", "application/json")
	}
	kind := "call"
	if i.send {
		kind = "send"
	}
	u := c.ingress + "/restate/" + kind + "/" + path
	if i.delay != "" {
		u += "?delay=" + url.QueryEscape(i.delay)
	}
	ans, err := c.do(ctx, http.MethodPost, u, body, header)
	if err != nil {
		return err
	}
	return c.printResult(ans, i.send)
}

func (c *client) body(arg string) ([]byte, error) {
	body := []byte(arg)
	if arg == "-" {
		var err error
		if body, err = io.ReadAll(c.app.in); err != nil {
			return nil, fmt.Errorf("read the body from standard input: %w", err)
		}
	}
	if !json.Valid(body) {
		return nil, usagef(`--json %.60s: that is not JSON; text needs quotes inside the shell's, as in --json '"Ada"'`, body)
	}
	return body, nil
}

func (c *client) printResult(ans *answer, send bool) error {
	if send && !c.json {
		var sent struct {
			ID     string `json:"invocationId"`
			Status string `json:"status"`
		}
		if err := json.Unmarshal(ans.body, &sent); err != nil {
			return fmt.Errorf("what answers at %s is no ingress of Perdure: %w", c.ingress, err)
		}
		_, err := fmt.Fprintf(c.app.out, "%s %s\nIts result: curl %s/restate/attach/%s\n", sent.Status, sent.ID, c.ingress, sent.ID)
		return err
	}
	if c.json && !send {
		result := map[string]any{"invocationId": ans.header.Get("X-Restate-Id"), "result": string(ans.body)}
		if json.Valid(ans.body) {
			result["result"] = json.RawMessage(ans.body)
		}
		return printJSON(c.app.out, result)
	}
	if _, err := c.app.out.Write(ans.body); err != nil {
		return err
	}
	if len(ans.body) > 0 && ans.body[len(ans.body)-1] != '\n' {
		fmt.Fprintln(c.app.out)
	}
	return nil
}

// operation is something that an operator does to an invocation.
type operation struct{ name, done, short string }

var operations = []operation{
	{"cancel", "Cancelled", "Ask invocations to stop: their handlers can clean up"},
	{"kill", "Killed", "Stop invocations at once, without clean-up"},
	{"purge", "Purged", "Forget completed invocations"},
	{"pause", "Paused", "Stop attempting invocations until they are resumed"},
	{"resume", "Resumed", "Go on with paused invocations"},
	{"restart-as-new", "Restarted", "Start copies of completed invocations, from the beginning or from an entry of their journals"},
}

func (a *app) invocationsCommand() *cobra.Command {
	below := []*cobra.Command{a.listInvocationsCommand(), a.getInvocationCommand()}
	for _, op := range operations {
		below = append(below, a.operationCommand(op))
	}
	c := group("invocations", "List and show invocations; cancel, kill, purge, pause, resume or restart them", below...)
	c.Aliases = []string{"invocation", "inv"}
	return c
}

func (a *app) operationCommand(op operation) *cobra.Command {
	var c client
	var o operationOptions
	cmd := &cobra.Command{
		Use: op.name + " ID...", Short: op.short, Args: argsOf(1, math.MaxInt, "the id of at least one invocation"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var errs []error
			for _, id := range args {
				if err := c.operate(cmd.Context(), op, o, id); err != nil {
					errs = append(errs, fmt.Errorf("%s %s: %w", op.name, id, err))
				}
			}
			return errors.Join(errs...)
		},
	}
	f := cmd.Flags()
	switch op.name {
	case "purge":
		f.BoolVar(&o.journalOnly, "journal", false, "forget only their journals, and keep their results")
	case "restart-as-new":
		f.Uint32Var(&o.from, "from", 0, "keep the journal up to and including this `entry` (invocations get shows them), and go on behind it")
		fallthrough
	case "resume":
		f.StringVar(&o.deployment, "deployment", "", "go on at this deployment: keep, latest or an `id`")
	}
	a.clientFlags(cmd, &c)
	return cmd
}

// operationOptions are what some operations can be told beside the invocation.
type operationOptions struct {
	journalOnly bool
	from        uint32
	deployment  string
}

// path is where the operation is asked for.
func (o *operationOptions) path(op operation, id string) string {
	verb, q := op.name, url.Values{}
	if o.journalOnly {
		verb += "-journal"
	}
	if o.from > 0 {
		q.Set("from", strconv.FormatUint(uint64(o.from), 10))
	}
	if o.deployment != "" {
		q.Set("deployment", o.deployment)
	}
	path := "/invocations/" + url.PathEscape(id) + "/" + verb
	if len(q) > 0 {
		path += "?" + q.Encode()
	}
	return path
}

func (c *client) operate(ctx context.Context, op operation, o operationOptions, id string) error {
	ans, err := c.adminDo(ctx, http.MethodPatch, o.path(op, id), nil, nil)
	if err != nil {
		return err
	}
	done := op.done
	switch {
	case op.name == "restart-as-new":
		var r struct {
			ID string `json:"new_invocation_id"`
		}
		if err := json.Unmarshal(ans.body, &r); err != nil {
			return fmt.Errorf("read the id of the new invocation: %w", err)
		}
		if r.ID == "" {
			return fmt.Errorf("what answers at %s does not tell the id of the new invocation: is it Perdure?", c.admin)
		}
		if c.json {
			return printJSON(c.app.out, map[string]string{"id": id, "result": strings.ToLower(done), "new_invocation_id": r.ID})
		}
		return c.done(done, id+" as "+r.ID)
	case ans.status == http.StatusAccepted:
		done = "Accepted: " + op.name
	case o.journalOnly:
		done = "Purged the journal of"
	case op.name == "pause" && c.isSuspended(ctx, id):
		done = "Nothing to pause, it is suspended:"
	}
	return c.done(done, id)
}

// isSuspended reports whether an invocation waits without being attempted, which pausing does not change.
func (c *client) isSuspended(ctx context.Context, id string) bool {
	var v invocationView
	_, err := c.adminDo(ctx, http.MethodGet, "/perdure/invocations/"+url.PathEscape(id), nil, &v)
	return err == nil && v.Status == "suspended"
}
