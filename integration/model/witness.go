package model

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"sync"
)

// End is how an invocation ended.
type End struct {
	Trace   Trace    `json:"trace"`
	Failure *Failure `json:"failure,omitempty"`
}

func (e End) String() string { return string(value(e)) }

// Witness is told by bodies what happens to them. It lives outside of server and endpoint and sees attempts that
// are executed again: what an operation gave must be the same each time, a body belongs to one invocation, and a step is
// not executed any more once the code behind it has its result. All methods may be called by any goroutine.
type Witness struct {
	mu       sync.Mutex
	ends     map[string]End // by body
	owners   map[string]string
	outcomes map[string]string // by operation
	runs     map[string]int    // executions, by operation
	crashes  map[string]int
	problems []string
	changed  chan struct{} // closed and replaced when a body ends
}

// NewWitness has seen nothing.
func NewWitness() *Witness {
	return &Witness{ends: map[string]End{}, owners: map[string]string{}, outcomes: map[string]string{}, runs: map[string]int{},
		crashes: map[string]int{}, changed: make(chan struct{})}
}

func (w *Witness) problemLocked(format string, args ...any) {
	if len(w.problems) < 100 {
		w.problems = append(w.problems, fmt.Sprintf(format, args...))
	}
}

// began notes an attempt of an invocation at a body.
func (w *Witness) began(body, invocation string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old := w.owners[body]; old != "" && old != invocation {
		w.problemLocked("body %s is executed by two invocations, %s and %s", body, old, invocation)
	}
	w.owners[body] = invocation
}

// executes notes that a step is executed and returns the number of the execution, from 1.
func (w *Witness) executes(token string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	if _, ok := w.outcomes[token+"#"]; ok {
		w.problemLocked("step %s is executed although its result was known", token)
	}
	w.runs[token]++
	return w.runs[token]
}

// crash counts what fails a number of times.
func (w *Witness) crash(token string) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.crashes[token]++
	return w.crashes[token]
}

// saw notes what an operation gave.
func (w *Witness) saw(token, outcome string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.outcomes[token]; ok && old != outcome {
		w.problemLocked("operation %s gave %s and, executed again, %s", token, old, outcome)
	}
	w.outcomes[token] = outcome
}

// ended notes how an invocation ended; an attempt may come to its end more than once.
func (w *Witness) ended(body string, e End) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, ok := w.ends[body]; ok && old.String() != e.String() {
		w.problemLocked("body %s ended with %s and, executed again, with %s", body, old, e)
	}
	w.ends[body] = e
	close(w.changed)
	w.changed = make(chan struct{})
}

// Missing are the bodies of want that have not ended. changed is closed at the next change.
func (w *Witness) missing(want map[string]End) (bodies []string, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for b := range want {
		if _, ok := w.ends[b]; !ok {
			bodies = append(bodies, b)
		}
	}
	slices.Sort(bodies)
	return bodies, w.changed
}

// Outcome is what a set of programs did.
type Outcome struct {
	Answers  map[int]End                  // what the ingress said, by program
	Ends     map[string]End               // by body
	Runs     map[string]int               // executions of steps
	Objects  map[string]map[string]string // state, by object; none without
	Problems []string
}

// Outcome is what the witness saw so far; Answers and Objects are for the caller to fill in.
func (w *Witness) outcome() *Outcome {
	w.mu.Lock()
	defer w.mu.Unlock()
	return &Outcome{Answers: map[int]End{}, Ends: maps.Clone(w.ends), Runs: maps.Clone(w.runs), Objects: map[string]map[string]string{}, Problems: slices.Clone(w.problems)}
}

// merge adds the outcome of other programs.
func (o *Outcome) merge(other *Outcome) {
	maps.Copy(o.Answers, other.Answers)
	maps.Copy(o.Ends, other.Ends)
	maps.Copy(o.Runs, other.Runs)
	for k, v := range other.Objects {
		if old := o.Objects[k]; old == nil {
			o.Objects[k] = maps.Clone(v)
		} else {
			addTotals(old, v)
		}
	}
	o.Problems = append(o.Problems, other.Problems...)
}

// addTotals adds the numbers of an object that several programs share.
func addTotals(into, from map[string]string) {
	for k, v := range from {
		var a, b int
		_, _ = fmt.Sscan(into[k], &a) // absent is 0
		if _, err := fmt.Sscan(v, &b); err != nil {
			panic(fmt.Sprintf("programs share the state %s=%q, which is no number", k, v))
		}
		into[k] = fmt.Sprint(a + b)
	}
}

// Compare says where an outcome differs from what is wanted. exactly asks for the wanted number of executions of each step,
// otherwise more are allowed, as after crashes.
func Compare(want, got *Outcome, exactly bool) (differences []string) {
	diff := func(format string, args ...any) { differences = append(differences, fmt.Sprintf(format, args...)) }
	for _, p := range want.Problems {
		diff("the reference itself has a problem: %s", p)
	}
	for _, p := range got.Problems {
		diff("%s", p)
	}
	compareMaps(want.Answers, got.Answers, func(n int, w, g string) { diff("program %d answers\n  want %s\n  got  %s", n, w, g) })
	compareMaps(want.Ends, got.Ends, func(b string, w, g string) { diff("body %s ends\n  want %s\n  got  %s", b, w, g) })
	compareMaps(objectsOf(want), objectsOf(got), func(o string, w, g string) { diff("object %s holds\n  want %s\n  got  %s", o, w, g) })
	for t, n := range want.Runs {
		if g := got.Runs[t]; g < n || exactly && g > n {
			diff("step %s was executed %d times, want %d", t, g, n)
		}
	}
	for t, n := range got.Runs {
		if _, ok := want.Runs[t]; !ok {
			diff("step %s was executed %d times, want 0", t, n)
		}
	}
	slices.Sort(differences)
	return differences
}

type state map[string]string

func (s state) String() string {
	b, err := json.Marshal(map[string]string(s))
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// objectsOf are the objects that have state.
func objectsOf(o *Outcome) map[string]state {
	m := map[string]state{}
	for k, v := range o.Objects {
		if len(v) > 0 {
			m[k] = v
		}
	}
	return m
}

func compareMaps[K comparable, V fmt.Stringer](want, got map[K]V, diff func(k K, want, got string)) {
	for k, w := range want {
		if g, ok := got[k]; !ok {
			diff(k, w.String(), "nothing")
		} else if g.String() != w.String() {
			diff(k, w.String(), g.String())
		}
	}
	for k, g := range got {
		if _, ok := want[k]; !ok {
			diff(k, "nothing", g.String())
		}
	}
}
