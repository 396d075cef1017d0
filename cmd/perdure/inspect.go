package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"
)

// invocationView is what the admin API shows of an invocation.
type invocationView struct {
	ID             string        `json:"id"`
	Target         string        `json:"target"`
	Status         string        `json:"status"`
	IdempotencyKey string        `json:"idempotency_key"`
	InvokedBy      string        `json:"invoked_by"`
	InvokedByID    string        `json:"invoked_by_id"`
	InvokedByName  string        `json:"invoked_by_target"`
	CreatedAt      string        `json:"created_at"`
	ModifiedAt     string        `json:"modified_at"`
	ScheduledFor   string        `json:"scheduled_for"`
	CompletedAt    string        `json:"completed_at"`
	Deployment     string        `json:"deployment"`
	Protocol       int           `json:"protocol_version"`
	Attempts       int           `json:"attempts"`
	NextAttemptAt  string        `json:"next_attempt_at"`
	LastServer     string        `json:"last_attempt_server"`
	LastFailure    *failureView  `json:"last_failure"`
	WaitingFor     *futureView   `json:"waiting_for"`
	Result         *resultView   `json:"result"`
	Journal        []journalView `json:"journal"`
	Events         []eventView   `json:"events"`
}

type failureView struct {
	Code       int    `json:"code"`
	ErrorCode  string `json:"error_code"`
	Message    string `json:"message"`
	Stacktrace string `json:"stacktrace"`
	Command    *struct {
		Index int    `json:"index"`
		Type  string `json:"type"`
		Name  string `json:"name"`
	} `json:"related_command"`
}

type futureView struct {
	Combinator   string       `json:"combinator"`
	Completions  []int        `json:"completions"`
	Signals      []int        `json:"signals"`
	NamedSignals []string     `json:"named_signals"`
	Nested       []futureView `json:"nested"`
}

type resultView struct {
	Result  string `json:"result"`
	Code    int    `json:"code"`
	Message string `json:"message"`
}

type journalView struct {
	Index      int    `json:"index"`
	Type       string `json:"type"`
	Name       string `json:"name"`
	AppendedAt string `json:"appended_at"`
	Size       int    `json:"size"`
}

type eventView struct {
	Type       string       `json:"type"`
	At         string       `json:"at"`
	AfterEntry int          `json:"after_entry"`
	Failure    *failureView `json:"failure"`
}

func (a *app) getInvocationCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use:   "get ID",
		Short: "Show an invocation: status, deployment, last failure, journal and events",
		Args:  argsOf(1, 1, "the id of one invocation"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var v invocationView
			ans, err := c.adminDo(cmd.Context(), "GET", "/perdure/invocations/"+url.PathEscape(args[0]), nil, &v)
			if err != nil {
				return err
			}
			if c.json {
				return rawJSON(a.out, ans.body)
			}
			return v.print(a.out)
		},
	}
	a.clientFlags(cmd, &c)
	return cmd
}

func (a *app) listInvocationsCommand() *cobra.Command {
	var c client
	var status []string
	var service, handler, key, deployment string
	var limit int
	cmd := &cobra.Command{
		Use:   "list",
		Short: "List invocations, the newest first",
		Example: `  perdure invocations list --status paused,backing-off
  perdure invocations list --service Counter --key visits --limit 10`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			q := url.Values{"limit": {strconv.Itoa(limit)}}
			if len(status) > 0 {
				q.Set("status", strings.Join(status, ","))
			}
			for name, v := range map[string]string{"service": service, "handler": handler, "key": key, "deployment": deployment} {
				if v != "" {
					q.Set(name, v)
				}
			}
			return c.listInvocations(cmd.Context(), q)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&status, "status", nil, "only these `statuses`: scheduled, pending, ready, running, backing-off, suspended, paused, completed")
	f.StringVar(&service, "service", "", "only those of this `service`")
	f.StringVar(&handler, "handler", "", "only those of this `handler`")
	f.StringVar(&key, "key", "", "only those of this `key`")
	f.StringVar(&deployment, "deployment", "", "only those pinned to the deployment with this `id`")
	f.IntVar(&limit, "limit", 50, "at most this `number`, up to 1000")
	a.clientFlags(cmd, &c)
	return cmd
}

func (c *client) listInvocations(ctx context.Context, q url.Values) error {
	var list struct {
		Invocations []invocationView `json:"invocations"`
	}
	ans, err := c.adminDo(ctx, "GET", "/perdure/invocations?"+q.Encode(), nil, &list)
	if err != nil {
		return err
	}
	if c.json {
		return rawJSON(c.app.out, ans.body)
	}
	rows := make([][]string, 0, len(list.Invocations))
	for i := range list.Invocations {
		v := &list.Invocations[i]
		rows = append(rows, []string{v.ID, v.Target, v.Status, short(v.CreatedAt), v.remark()})
	}
	if len(rows) == 0 {
		_, err := fmt.Fprintln(c.app.out, "There are no such invocations.")
		return err
	}
	return table(c.app.out, []string{"ID", "TARGET", "STATUS", "CREATED", ""}, rows)
}

// remark is what is most worth knowing of an invocation in one line.
func (v *invocationView) remark() string {
	switch {
	case v.Result != nil && v.Result.Result == "failure":
		return oneLine(fmt.Sprintf("[%d] %s", v.Result.Code, v.Result.Message))
	case v.LastFailure != nil:
		return oneLine(v.LastFailure.String())
	case v.ScheduledFor != "":
		return "due " + short(v.ScheduledFor)
	}
	return ""
}

func oneLine(s string) string {
	s, _, _ = strings.Cut(s, "\n")
	if r := []rune(s); len(r) > 80 {
		s = string(r[:79]) + "…"
	}
	return s
}

// String is the failure with its code and the command that it is about.
func (f *failureView) String() string {
	s := fmt.Sprintf("[%d] %s", f.Code, f.Message)
	if f.ErrorCode != "" {
		s = f.ErrorCode + " " + s
	}
	if c := f.Command; c != nil {
		s += fmt.Sprintf(" (at command %d", c.Index)
		if c.Type != "" {
			s += " " + c.Type
		}
		if c.Name != "" {
			s += " " + strconv.Quote(c.Name)
		}
		s += ")"
	}
	return s
}

// String is the future in one line.
func (f *futureView) String() string {
	var parts []string
	for _, c := range f.Completions {
		parts = append(parts, fmt.Sprintf("completion %d", c))
	}
	for _, s := range f.Signals {
		if s == 1 {
			parts = append(parts, "cancel")
			continue
		}
		parts = append(parts, fmt.Sprintf("signal %d", s))
	}
	for _, s := range f.NamedSignals {
		parts = append(parts, "signal "+strconv.Quote(s))
	}
	for i := range f.Nested {
		parts = append(parts, f.Nested[i].String())
	}
	return f.Combinator + "(" + strings.Join(parts, ", ") + ")"
}

// short is a time without its fraction.
func short(rfc3339 string) string {
	t, err := time.Parse(time.RFC3339Nano, rfc3339)
	if err != nil {
		return rfc3339
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// print writes the invocation for a person to read.
func (v *invocationView) print(w io.Writer) error {
	field := func(name, value string) {
		if value != "" {
			fmt.Fprintf(w, "%-16s%s\n", name, value)
		}
	}
	field("id", v.ID)
	field("target", v.Target)
	field("status", v.Status)
	if r := v.Result; r != nil {
		field("result", strings.TrimSpace(r.Result+" "+r.text()))
	}
	field("invoked by", strings.TrimSpace(v.InvokedBy+" "+v.InvokedByID+" "+v.InvokedByName))
	field("idempotency key", v.IdempotencyKey)
	field("created", v.CreatedAt)
	field("modified", v.ModifiedAt)
	field("scheduled for", v.ScheduledFor)
	field("completed", v.CompletedAt)
	if v.Deployment != "" {
		field("deployment", fmt.Sprintf("%s (protocol V%d)", v.Deployment, v.Protocol))
	}
	field("answered by", v.LastServer)
	if v.Attempts > 0 {
		field("attempts", strconv.Itoa(v.Attempts))
	}
	field("next attempt", v.NextAttemptAt)
	if v.WaitingFor != nil {
		field("waits for", v.WaitingFor.String())
	}
	if f := v.LastFailure; f != nil {
		field("last failure", f.String())
		if f.Stacktrace != "" {
			fmt.Fprintln(w, indent(f.Stacktrace))
		}
	}
	return errors.Join(v.printJournal(w), v.printEvents(w))
}

func (r *resultView) text() string {
	if r.Result != "failure" {
		return ""
	}
	return fmt.Sprintf("[%d] %s", r.Code, r.Message)
}

func indent(s string) string {
	return "    " + strings.ReplaceAll(strings.TrimRight(s, "\n"), "\n", "\n    ")
}

func (v *invocationView) printJournal(w io.Writer) error {
	if len(v.Journal) == 0 {
		return nil
	}
	rows := make([][]string, len(v.Journal))
	for i, e := range v.Journal {
		rows[i] = []string{strconv.Itoa(e.Index), e.Type, e.Name, strconv.Itoa(e.Size), e.AppendedAt}
	}
	fmt.Fprintln(w)
	return table(w, []string{"ENTRY", "TYPE", "NAME", "BYTES", "APPENDED"}, rows)
}

func (v *invocationView) printEvents(w io.Writer) error {
	if len(v.Events) == 0 {
		return nil
	}
	rows := make([][]string, len(v.Events))
	for i, e := range v.Events {
		what := ""
		if e.Failure != nil {
			what = oneLine(e.Failure.String())
		}
		rows[i] = []string{e.At, e.Type, strconv.Itoa(e.AfterEntry), what}
	}
	fmt.Fprintln(w)
	return table(w, []string{"EVENT", "TYPE", "AFTER ENTRY", ""}, rows)
}
