package chaos

import (
	"bytes"
	"encoding/json"
	"fmt"
	"sort"
)

// account is what an account may hold: at least what was acknowledged, at most that and what is unknown.
type account struct{ least, most int }

// expectation is what the operations of a history must have led to.
type expectation struct {
	accounts map[string]account
	sinks    map[string]map[string]bool
}

func expected(h *History) expectation {
	e := expectation{map[string]account{}, map[string]map[string]bool{}}
	sink := func(key, name string) {
		if e.sinks[key] == nil {
			e.sinks[key] = map[string]bool{}
		}
		e.sinks[key][name] = true
	}
	for _, o := range h.ops {
		if o.failed != "" {
			continue // reported by itself; it makes bounds of this key meaningless
		}
		a := e.accounts[o.key]
		switch o.kind {
		case add, sendAdd:
			a.least++
			a.most++
		case move:
			a.least++
			a.most++
			sink(o.key, o.name+"/now")
			sink(o.key, o.name+"/later")
		case sendPut:
			sink(o.key, o.name)
		case blindAdd:
			a.most++
			if !o.unknown {
				a.least++
			}
		}
		e.accounts[o.key] = a
	}
	return e
}

// Check compares a settled history with what was promised and returns every broken promise.
func Check(h *History) []string {
	bad := append([]string(nil), h.problems...)
	for _, o := range h.ops {
		if o.failed != "" {
			bad = append(bad, fmt.Sprintf("%s (%s): no success: %s", o.name, o.path(), o.failed))
		}
	}
	bad = append(bad, checkAnswers(h)...)
	e := expected(h)
	bad = append(bad, checkAccounts(h, e)...)
	bad = append(bad, checkSinks(h, e)...)
	for _, s := range h.ledger.ambiguous() {
		bad = append(bad, "step observed with more than one result: "+s)
	}
	sort.Strings(bad)
	return bad
}

// checkAnswers: asked again, an operation has the same outcome, and no two additions to an account saw one balance.
func checkAnswers(h *History) []string {
	var bad []string
	saw := map[string]string{}
	balance := func(o *op, body []byte) {
		var a Answer
		if err := json.Unmarshal(body, &a); err != nil {
			bad = append(bad, fmt.Sprintf("%s: answer %.100q: %v", o.name, body, err))
			return
		}
		at := fmt.Sprintf("balance %d of account %s", a.Balance, o.key)
		if other, ok := saw[at]; ok {
			bad = append(bad, fmt.Sprintf("%s was given to both %s and %s", at, other, o.name))
		}
		saw[at] = o.name
	}
	for _, o := range h.ops {
		if o.failed != "" || o.unknown {
			continue
		}
		again, asked := h.again[o]
		switch o.kind {
		case add, move:
			balance(o, o.answer)
			if asked && !bytes.Equal(again, o.answer) {
				bad = append(bad, fmt.Sprintf("%s: answered %.100q at first and %.100q later", o.name, o.answer, again))
			}
		case sendAdd:
			if asked {
				balance(o, again)
			}
		case blindAdd:
			balance(o, o.answer)
		}
	}
	return bad
}

func checkAccounts(h *History, e expectation) []string {
	var bad []string
	for key, a := range e.accounts {
		switch n := h.balances[key]; {
		case n < a.least:
			bad = append(bad, fmt.Sprintf("account %s: %d additions lost (%d acknowledged, holds %d)", key, a.least-n, a.least, n))
		case n > a.most:
			bad = append(bad, fmt.Sprintf("account %s: %d additions too many (%d possible, holds %d)", key, n-a.most, a.most, n))
		}
	}
	return bad
}

func checkSinks(h *History, e expectation) []string {
	var bad []string
	for key, want := range e.sinks {
		times := map[string]int{}
		for _, name := range h.sinks[key] {
			times[name]++
		}
		for name := range want {
			if n := times[name]; n != 1 {
				bad = append(bad, fmt.Sprintf("sink %s: one-way call %s arrived %d times", key, name, n))
			}
		}
		for name := range times {
			if !want[name] {
				bad = append(bad, fmt.Sprintf("sink %s: %s arrived, which nobody was told to have sent", key, name))
			}
		}
	}
	return bad
}
