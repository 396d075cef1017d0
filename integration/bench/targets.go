package bench

import (
	"fmt"
	"io"
)

// target is what Perdure is to reach in one workload: as a ratio to the other server's median in the same run, or as a
// figure of its own.
type target struct {
	says     string
	workload string
	metric   string
	ratio    bool // bound is a factor of the other server's figure
	atLeast  bool // else at most
	bound    float64
	goal     float64 // what we are after behind the target; 0 is nothing more
}

// subject is the server that the targets are for.
const subject = "perdure"

// targets are those of the single node on two cores at default settings. The other server is measured at its default
// settings, or in a definition whose name ends in -4p with four partitions.
var targets = []target{
	{says: "throughput at 64 clients", workload: "greet-c64", metric: "throughput", ratio: true, atLeast: true, bound: 2, goal: 4},
	{says: "median latency of one client", workload: "greet-c1", metric: "p50", ratio: true, bound: 0.5},
	{says: "median latency of one client, ms", workload: "greet-c1", metric: "p50", goal: 0.5},
	{says: "CPU per call at 64 clients", workload: "greet-c64", metric: "server CPU /1k", ratio: true, bound: 0.5},
	{says: "CPU per call at 64 clients, ms", workload: "greet-c64", metric: "server CPU /1k", goal: 0.15},
	{says: "memory when idle, MiB", workload: "startup", metric: "idle RSS", bound: 80},
	{says: "start on an empty directory, ms", workload: "startup", metric: "cold start to healthy", bound: 500},
	{says: "size of the executable, MiB", workload: "startup", metric: "binary size", bound: 57}, // 60 MB
	{says: "wrong answers at 64 clients", workload: "greet-c64", metric: "wrong", bound: 0},
}

// fourPartitions is the throughput to reach against four partitions, which suit two cores better than the default.
const fourPartitions = 1.2

// verdict is one line of the summary.
type verdict struct {
	target
	value  float64
	known  bool // both sides were measured
	passed bool
	gained bool // the goal, too
}

// judge compares the medians with the targets. Those whose workloads were not run are not known.
func (r *Results) judge() []verdict {
	other := ""
	for _, n := range r.Names {
		if n != subject {
			other = n
		}
	}
	var out []verdict
	for _, t := range targets {
		if t.ratio && t.metric == "throughput" && isFourPartitions(other) {
			t.bound = fourPartitions
		}
		v := verdict{target: t}
		own := statOf(r.Runs[t.workload][subject], t.metric)
		v.value, v.known = own.med, own.n > 0
		if t.metric == "wrong" { // in no round
			v.value = own.hi
		}
		if t.ratio {
			base := statOf(r.Runs[t.workload][other], t.metric)
			v.known = v.known && base.n > 0 && base.med > 0
			if v.known {
				v.value = own.med / base.med
			}
		}
		v.passed = v.known && (t.goalOnly() || t.reached(v.value, t.bound))
		v.gained = v.known && t.goal != 0 && t.reached(v.value, t.goal)
		out = append(out, v)
	}
	return out
}

func isFourPartitions(name string) bool {
	const suffix = "-4p"
	return len(name) > len(suffix) && name[len(name)-len(suffix):] == suffix
}

// goalOnly says that nothing is demanded, only wished for.
func (t *target) goalOnly() bool { return t.goal != 0 && t.bound == 0 }

func (t *target) reached(value, bound float64) bool {
	if t.atLeast {
		return value >= bound
	}
	return value <= bound
}

// writeTargets writes the table of targets, if Perdure was measured.
func (r *Results) writeTargets(w io.Writer) {
	vs := r.judge()
	any := false
	for _, v := range vs {
		any = any || v.known
	}
	if !any {
		return
	}
	fmt.Fprintf(w, "\n## Targets\n\n")
	if f := r.foreign(); f > quotable {
		fmt.Fprintf(w, "Other processes used up to %.0f %% of the machine meanwhile. Above %d %% the verdicts on speed prove nothing, in either direction: measure again when it is quiet.\n\n", f, quotable)
	}
	fmt.Fprintf(w, "| target | workload | demanded | goal | measured | verdict |\n|---|---|---:|---:|---:|---|\n")
	for _, v := range vs {
		measured, demanded, goal := "–", "–", "–"
		if v.known {
			measured = v.format(v.value)
		}
		if !v.goalOnly() {
			demanded = v.limit(v.bound)
		}
		if v.goal != 0 {
			goal = v.limit(v.goal)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", v.says, v.workload, demanded, goal, measured, v.verdict())
	}
}

// quotable is the foreign CPU, in percent, up to which figures are worth quoting.
const quotable = 5

// foreign is the most that other processes used of the machine in a run of a workload that has targets.
func (r *Results) foreign() (most float64) {
	for _, t := range targets {
		for _, runs := range r.Runs[t.workload] {
			most = max(most, statOf(runs, "foreign CPU").hi)
		}
	}
	return most
}

func (v *verdict) verdict() string {
	switch {
	case !v.known:
		return "not measured"
	case !v.passed:
		return "**FAIL**"
	case v.gained && v.goalOnly():
		return "goal reached"
	case v.goalOnly():
		return "goal not reached"
	case v.gained:
		return "pass, goal reached"
	}
	return "pass"
}

func (t *target) limit(x float64) string {
	if t.atLeast {
		return "≥ " + t.format(x)
	}
	return "≤ " + t.format(x)
}

func (t *target) format(x float64) string {
	if t.ratio {
		return fmt.Sprintf("%.2f×", x)
	}
	return fnum(x)
}
