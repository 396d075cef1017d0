package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"time"

	"github.com/spf13/cobra"
)

func (a *app) doctorCommand() *cobra.Command {
	var c client
	cmd := &cobra.Command{
		Use: "doctor [INVOCATION_ID]", Short: "Say what invocations wait for, and find those that are stuck", Args: argsOf(0, 1, "no id, or that of one invocation"),
		Long: `Say in plain words what an invocation waits for and who will wake it. Without an invocation, examine all of them and
list those that nothing will make go on. The exit code is 1 if something is stuck.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return c.checkup(cmd.Context())
			}
			return c.diagnose(cmd.Context(), args[0])
		},
	}
	a.clientFlags(cmd, &c)
	return cmd
}

type checkupAnswer struct {
	Healthy       bool              `json:"healthy"`
	Invocations   map[string]int    `json:"invocations"`
	WaitsFor      map[string]int    `json:"waits_for"`
	Problems      []diagnosisAnswer `json:"problems"`
	ProblemsTotal int               `json:"problems_total"`
	Partitions    int               `json:"partitions"`
	Unexamined    map[string]string `json:"unexamined"`
	Notes         []string          `json:"notes"`
}

type diagnosisAnswer struct {
	ID      string    `json:"id"`
	Target  string    `json:"target"`
	Status  string    `json:"status"`
	Since   time.Time `json:"since"`
	Needs   string    `json:"needs"`
	Problem string    `json:"problem"`
	Waits   []struct {
		Text string `json:"text"`
	} `json:"waits"`
	Chain []struct {
		ID     string `json:"id"`
		Target string `json:"target"`
		Status string `json:"status"`
		Text   string `json:"text"`
	} `json:"chain"`
}

// reasonTexts explain what invocations wait for, in the order in which they are shown, and name the statuses by which those
// that somebody may have to look at are listed.
var reasonTexts = []struct{ reason, text, statuses string }{
	{"attempt", "run at a service now", ""},
	{"slot", "wait for a free place among the concurrent attempts", ""},
	{"retry", "have failed and wait for their next attempt", "backing-off"},
	{"log", "have ended an attempt, which is being recorded", ""},
	{"timer", "sleep or are delayed", ""},
	{"invocation", "wait for another invocation", ""},
	{"lock", "wait for their object's lock", "pending"},
	{"promise", "wait for a durable promise", ""},
	{"signal", "wait for an awakeable or signal from outside", ""},
	{"operator", "need an operator, as they are paused or nothing serves them", "paused,backing-off,ready"},
}

func (c *client) checkup(ctx context.Context) error {
	var r checkupAnswer
	ans, err := c.adminDo(ctx, http.MethodGet, "/perdure/doctor", nil, &r)
	if err != nil {
		return err
	}
	if c.json {
		err = rawJSON(c.app.out, ans.body)
	} else {
		err = printCheckup(c.app.out, &r)
	}
	if err == nil && !r.Healthy {
		return exitCode(1)
	}
	return err
}

func printCheckup(w io.Writer, r *checkupAnswer) error {
	fmt.Fprintf(w, "%d partitions examined\n\n", r.Partitions)
	var rows [][]string
	for _, s := range slices.Sorted(maps.Keys(r.Invocations)) {
		rows = append(rows, []string{fmt.Sprint(r.Invocations[s]), s})
	}
	if err := printCounts(w, []string{"INVOCATIONS", "STATUS"}, rows); err != nil {
		return err
	}
	rows = nil
	head := []string{"OF THESE", "THAT"}
	for _, t := range reasonTexts {
		if n := r.WaitsFor[t.reason]; n > 0 {
			row := []string{fmt.Sprint(n), t.text}
			if t.statuses != "" {
				row = append(row, "perdure invocations list --status "+t.statuses)
				head = []string{"OF THESE", "THAT", "SEE"}
			}
			rows = append(rows, row)
		}
	}
	if err := printCounts(w, head, rows); err != nil {
		return err
	}
	for _, p := range slices.Sorted(maps.Keys(r.Unexamined)) {
		fmt.Fprintf(w, "partition %s was not examined: %s\n", p, r.Unexamined[p])
	}
	for _, note := range r.Notes {
		fmt.Fprintf(w, "%s\n\n", note)
	}
	switch n := r.WaitsFor["operator"]; {
	case r.ProblemsTotal == 0 && len(r.Unexamined) > 0:
		fmt.Fprintln(w, "Nothing is stuck in those that were.")
		return nil
	case r.ProblemsTotal == 0 && n > 0:
		fmt.Fprintf(w, "Nothing is stuck, but %d will only go on when an operator has acted: perdure doctor ID says how.\n", n)
		return nil
	case r.ProblemsTotal == 0:
		fmt.Fprintln(w, "Nothing is stuck: each invocation has something that will make it go on.")
		return nil
	}
	fmt.Fprintf(w, "%d are stuck:\n", r.ProblemsTotal)
	for i := range r.Problems {
		p := &r.Problems[i]
		fmt.Fprintf(w, "\n%s  %s  %s\n  %s\n", p.ID, p.Target, p.Status, p.Problem)
	}
	return nil
}

// printCounts writes a table and an empty line, or nothing if there is nothing to count.
func printCounts(w io.Writer, head []string, rows [][]string) error {
	if len(rows) == 0 {
		return nil
	}
	err := table(w, head, rows)
	fmt.Fprintln(w)
	return err
}

func (c *client) diagnose(ctx context.Context, id string) error {
	var d diagnosisAnswer
	ans, err := c.adminDo(ctx, http.MethodGet, "/perdure/doctor/"+url.PathEscape(id), nil, &d)
	if err != nil {
		return err
	}
	if c.json {
		err = rawJSON(c.app.out, ans.body)
	} else {
		printDiagnosis(c.app.out, &d)
	}
	if err == nil && d.Problem != "" {
		return exitCode(1)
	}
	return err
}

func printDiagnosis(w io.Writer, d *diagnosisAnswer) {
	fmt.Fprintf(w, "%s  %s\n%s since %s\n\n", d.ID, d.Target, d.Status, d.Since.Local().Format(time.RFC3339))
	switch {
	case d.Problem != "":
		fmt.Fprintf(w, "STUCK: %s\n", d.Problem)
	case len(d.Waits) == 1:
		fmt.Fprintf(w, "It waits for this: %s\n", d.Waits[0].Text)
	default:
		fmt.Fprintf(w, "It waits for several things; %s:\n", d.Needs)
	}
	if d.Problem != "" || len(d.Waits) > 1 {
		for _, wait := range d.Waits {
			fmt.Fprintf(w, "  - %s\n", wait.Text)
		}
	}
	for _, l := range d.Chain {
		fmt.Fprintf(w, "\nwhich is %s  %s, %s\n  %s\n", l.ID, l.Target, l.Status, l.Text)
	}
}
