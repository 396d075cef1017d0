package e2e

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"perdure/integration/services"
)

// query runs SQL and returns the rows.
func (c *client) query(t testing.TB, sql string) []map[string]any {
	t.Helper()
	a := c.adm(t, request{path: "/query", body: toJSON(t, map[string]string{"query": sql}), header: map[string]string{"Accept": "application/json"}})
	check(t, a, want{status: 200, header: jsonType})
	return decode[struct{ Rows []map[string]any }](t, a, 200).Rows
}

// status is the status of an invocation in the words of sys_invocation.
func (c *client) status(t testing.TB, id string) string {
	t.Helper()
	if target.kind == "perdure" {
		return c.inspect(t, id).Status
	}
	rows := c.query(t, "SELECT status FROM sys_invocation WHERE id = '"+id+"'")
	if len(rows) == 0 { // its tables may lag behind
		return ""
	}
	return fmt.Sprint(rows[0]["status"])
}

// journal are the types of the entries of an invocation's journal, in the words of sys_journal.
func (c *client) journal(t testing.TB, id string) (types []string) {
	t.Helper()
	if target.kind == "perdure" {
		for _, entry := range c.inspect(t, id).Journal {
			types = append(types, entry.Type)
		}
		return types
	}
	for _, row := range c.query(t, "SELECT index, entry_type FROM sys_journal WHERE id = '"+id+"' ORDER BY index") {
		types = append(types, fmt.Sprint(row["entry_type"]))
	}
	return types
}

// awaitEntry waits until the journal of an invocation has an entry of the type: then an attempt that is stopped need not
// make it again.
func (c *client) awaitEntry(t testing.TB, id, typ string) {
	t.Helper()
	poll(t, typ+" in the journal of "+id, func() error {
		if types := c.journal(t, id); !slices.Contains(types, typ) {
			return fmt.Errorf("it is %q", types)
		}
		return nil
	})
}

// becomes waits until an invocation has the status, in the words of sys_invocation. It does not ask for it.
func (c *client) becomes(t testing.TB, id, status string) {
	t.Helper()
	poll(t, id+" is "+status, func() error {
		if s := c.status(t, id); s != status {
			return fmt.Errorf("it is %s", s)
		}
		return nil
	})
}

// stop asks an invocation to pause until it is paused or suspended: then a pause has nothing to do.
func (c *client) stop(t testing.TB, id string) {
	t.Helper()
	poll(t, id+" stops", func() error {
		a := c.end(t, id, "pause")
		if a.status == 202 {
			return fmt.Errorf("pausing")
		}
		check(t, a, want{status: 200, empty: true})
		return nil
	})
}

// awaitCount waits until the endpoint has counted n under token.
func (e *endpoint) awaitCount(t testing.TB, token string, n int) {
	t.Helper()
	poll(t, fmt.Sprintf("count %d of %s", n, token), func() error {
		if got := e.count(t, token); got < n {
			return fmt.Errorf("count is %d", got)
		}
		return nil
	})
}

func TestNextPauseOnMaxAttemptsAndResume(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		token := fresh(t)
		id := e.send(t, e.path("Failing", "pausing"), token)
		e.awaitCount(t, token, 2)
		e.becomes(t, id, "paused")
		check(t, e.end(t, id, "restart-as-new"), want{status: 409, json: adminError("The invocation '" + id + "' is still running."), header: jsonType})
		check(t, e.end(t, id, "resume?deployment=bogus"), want{status: 400, json: adminError("The query parameter 'deployment' is invalid. Reason: bad format"), header: jsonType})
		check(t, e.in(t, request{method: "GET", path: "/restate/invocation/" + id + "/output"}), want{status: 470})
		check(t, e.end(t, id, "resume"), want{status: 200, empty: true})
		e.awaitCount(t, token, 4) // it fails twice more
		e.becomes(t, id, "paused")
		equal(t, "attempts", e.count(t, token), 4)
		e.open(t, token)
		check(t, e.end(t, id, "resume?deployment=latest"), want{status: 200, empty: true})
		equal(t, "result", decode[string](t, e.attach(t, id), 200), "recovered")
		check(t, e.end(t, id, "resume"), want{status: 409, json: adminError("The invocation '" + id + "' is completed, cannot be resumed."), header: jsonType})
		check(t, e.end(t, id, "pause"), want{status: 409, json: adminError("The invocation '" + id + "' is not running, cannot be paused."), header: jsonType})
	})
}

func TestNextPausedInvocationCanBeEnded(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for op, status := range map[string]int{"kill": 200, "cancel": 202} {
		token := fresh(t)
		id := e.send(t, e.path("Failing", "pausing"), token)
		e.awaitCount(t, token, 2)
		e.becomes(t, id, "paused")
		e.open(t, token)
		check(t, e.end(t, id, op), want{status: status, empty: true})
		w := want{status: 409, json: `{"code":409,"message":"killed","source":"invocation"}`}
		if op == "cancel" { // a cancel resumes it, and the handler no longer fails
			w = want{status: 200, json: `"recovered"`}
		}
		check(t, e.attach(t, id), w)
	}
}

func TestNextPauseAndResumeRunning(t *testing.T) {
	eachVariant(t, func(t *testing.T, e *endpoint) {
		key, token := fresh(t), fresh(t)
		id := e.send(t, e.path("Blocker", key, "await"), token)
		e.awaitEntry(t, id, "Notification: Run")
		e.stop(t, id)
		next := e.send(t, e.path("Blocker", key, "free"), nil)
		e.becomes(t, next, "pending") // what is paused keeps its key
		check(t, e.end(t, id, "resume"), want{status: 200, empty: true})
		check(t, e.end(t, id, "cancel"), want{status: 202, empty: true})
		check(t, e.attach(t, id), want{status: 409})
		equal(t, "lines", e.lines(t, token), []string{"enter", "cleanup"})
		equal(t, "the key is free", decode[string](t, e.attach(t, next), 200), "free")
	})
}

func TestNextOperationsOnWhatHasNotStarted(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	id := decode[sent](t, e.in(t, request{path: e.path("Greeter", "greet") + "/send?delay=1h", body: `"x"`}), 202).InvocationID
	check(t, e.end(t, id, "pause"), want{status: 409, json: adminError("The invocation '" + id + "' is not running, cannot be paused."), header: jsonType})
	check(t, e.end(t, id, "resume"), want{status: 425, json: adminError("The invocation '" + id + "' is either inboxed or scheduled, cannot be resumed."), header: jsonType})
	check(t, e.end(t, id, "restart-as-new"), want{status: 425, json: adminError("The invocation '" + id + "' cannot be restarted because it's not running yet."), header: jsonType})
	for _, op := range []string{"pause", "resume", "restart-as-new"} {
		check(t, e.end(t, unknownID, op), want{status: 404, json: adminError("The requested invocation '" + unknownID + "' does not exist"), header: jsonType})
	}
}

func TestNextRestartAsNew(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	token := fresh(t)
	a := e.in(t, request{path: e.path("Runner", "once"), body: toJSON(t, token)})
	id := a.header.Get("x-restate-id")
	equal(t, "first", decode[services.Executed](t, a, 200), services.Executed{Value: "v-" + token, Executions: 1})
	restart := func(query string) string {
		a := e.end(t, id, "restart-as-new"+query)
		check(t, a, want{status: 200, json: `{"new_invocation_id":"<inv>"}`, header: jsonType})
		n := decode[struct {
			ID string `json:"new_invocation_id"`
		}](t, a, 200).ID
		if n == id {
			t.Errorf("the new invocation has the old id")
		}
		return n
	}
	equal(t, "from the start", decode[services.Executed](t, e.attach(t, restart("")), 200), services.Executed{Value: "v-" + token, Executions: 2})
	// From the step on: its result is in the copied prefix.
	equal(t, "after the step", decode[services.Executed](t, e.attach(t, restart("?from=1")), 200), services.Executed{Value: "v-" + token, Executions: 2})
	check(t, e.end(t, id, "restart-as-new?from=99"), want{status: 400, json: adminError("…"), header: jsonType})
	check(t, e.end(t, id, "restart-as-new?from=x"), want{status: 400, text: "Failed to deserialize query string: …", header: map[string]string{"content-type": "text/plain; charset=utf-8"}})
}

func TestNextBatchOperations(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	batch := func(op string, ids ...string) *answer {
		return e.post(t, "/internal/invocations_batch_operations/"+op, map[string]any{"invocation_ids": ids})
	}
	token := fresh(t)
	start := func() string {
		id := e.send(t, e.path("Blocker", fresh(t), "hold"), token)
		return id
	}
	one, two := start(), start()
	e.awaitLines(t, token, 2)
	notFound := fmt.Sprintf(`{"invocation_id":%q,"error":"Invocation '%s' not found"}`, unknownID, unknownID)
	check(t, batch("kill", one, two, unknownID), want{status: 200, json: fmt.Sprintf(`{"succeeded":[%q,%q],"failed":[%s]}`, one, two, notFound), header: jsonType})
	for _, id := range []string{one, two} {
		check(t, e.attach(t, id), want{status: 409})
	}
	check(t, batch("cancel", one), want{status: 200, json: fmt.Sprintf(`{"succeeded":[],"failed":[{"invocation_id":%q,"error":"Invocation '%s' was already completed"}]}`, one, one)})
	a := batch("restart-as-new", one)
	check(t, a, want{status: 200, json: fmt.Sprintf(`{"succeeded":[{"old_invocation_id":%q,"new_invocation_id":"<inv>"}],"failed":[]}`, one)})
	check(t, batch("purge-journal", one), want{status: 200, json: fmt.Sprintf(`{"succeeded":[%q],"failed":[]}`, one)})
	check(t, batch("purge", one, two), want{status: 200, json: fmt.Sprintf(`{"succeeded":[%q,%q],"failed":[]}`, one, two)})
	for _, op := range []string{"kill", "cancel", "purge", "purge-journal", "restart-as-new", "resume", "pause"} {
		check(t, batch(op, unknownID), want{status: 200, json: `{"succeeded":[],"failed":[` + notFound + `]}`})
	}
	check(t, batch("kill", "bad"), want{status: 422, text: "Failed to deserialize the JSON body into the target type: …"})
	many := make([]string, 1001)
	for i := range many {
		many[i] = unknownID
	}
	check(t, batch("kill", many...), want{status: 400, json: `{"message":"<some>","restate_code":null}`})
	e.open(t, token)
}

// stateVersion is the version by which a change of state can be made conditional.
func stateVersion(state map[string]string) string {
	h := sha256.New()
	for i, k := range slices.Sorted(maps.Keys(state)) {
		h.Write(binary.BigEndian.AppendUint64(nil, uint64(i)))
		fmt.Fprintf(h, "\x01%s\x02%s\x03", k, state[k])
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil))
}

func TestNextModifyState(t *testing.T) {
	t.Parallel()
	equal(t, "a known version", stateVersion(map[string]string{"name": "bob"}), "tDqA04Lj3_qJ-PgNPTecXDGZgpwy6jm2Ni2BYqJIthM")
	e := goBidi(t)
	key := fresh(t)
	modify := func(version string, state map[string]string) {
		t.Helper()
		raw := map[string][]int{}
		for k, v := range state {
			raw[k] = []int{}
			for _, b := range []byte(v) {
				raw[k] = append(raw[k], int(b))
			}
		}
		body := map[string]any{"object_key": key, "new_state": raw}
		if version != "" {
			body["version"] = version
		}
		check(t, e.post(t, "/services/"+e.prefix+"Counter/state", body), want{status: 202, empty: true})
	}
	counts := func(n int) {
		t.Helper()
		poll(t, fmt.Sprintf("count %d", n), func() error {
			if got := call[int](t, e, e.path("Counter", key, "get"), nil); got != n {
				return fmt.Errorf("count is %d", got)
			}
			return nil
		})
	}
	modify("", map[string]string{"count": "5", "other": `"x"`})
	counts(5)
	modify(stateVersion(map[string]string{"count": "5", "other": `"x"`}), map[string]string{"count": "6"})
	counts(6)
	equal(t, "keys", call[[]string](t, e, e.path("Counter", key, "keys"), nil), []string{"count"})
	modify(stateVersion(map[string]string{"count": "5"}), map[string]string{"count": "7"}) // not the version it has
	// The key is a queue: what changes it next comes after the change that is to be refused.
	equal(t, "add after a refused change", call[services.Added](t, e, e.path("Counter", key, "add"), 1), services.Added{Old: 6, New: 7})
	modify(stateVersion(map[string]string{"count": "7"}), map[string]string{"count": "8"})
	counts(8)
	modify("", nil)
	counts(0)
	state := `{"object_key":"k","new_state":{"count":[53]}}`
	for path, w := range map[string]want{
		"/services/" + e.prefix + "Greeter/state": {status: 400, json: adminError("Cannot modify state for service type Service"), header: jsonType},
		"/services/NoSuch/state":                  {status: 404, json: adminError("The requested service 'NoSuch' does not exist"), header: jsonType},
	} {
		check(t, e.adm(t, request{path: path, body: state}), w)
	}
}

func TestNextQuery(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	if differs(t, "query") {
		a := e.adm(t, request{path: "/query", body: `{"query":"SELECT 1"}`})
		check(t, a, want{status: 501, json: adminError("not supported by this server: SQL introspection; use GET /perdure/invocations and /perdure/doctor (perdure invocations list, perdure doctor)"), header: jsonType})
		return
	}
	key := fresh(t)
	a := e.in(t, request{path: e.path("Counter", key, "add"), body: "15", header: map[string]string{"Idempotency-Key": "q"}})
	id := a.header.Get("x-restate-id")
	rows := e.query(t, "SELECT id, target, target_service_name, target_service_key, target_handler_name, target_service_ty, idempotency_key, invoked_by, status, completion_result, pinned_deployment_id FROM sys_invocation WHERE id = '"+id+"'")
	equal(t, "sys_invocation", rows, []map[string]any{{"id": id, "target": e.prefix + "Counter/" + key + "/add", "target_service_name": e.prefix + "Counter",
		"target_service_key": key, "target_handler_name": "add", "target_service_ty": "virtual_object", "idempotency_key": "q", "invoked_by": "ingress",
		"status": "completed", "completion_result": "success", "pinned_deployment_id": e.id}})
	rows = e.query(t, "SELECT key, value, value_utf8 FROM state WHERE service_name = '"+e.prefix+"Counter' AND service_key = '"+key+"'")
	equal(t, "state", rows, []map[string]any{{"key": "count", "value": "3135", "value_utf8": "15"}})
	get := "Command: GetEagerState"
	if noEagerState() {
		get = "Command: GetLazyState, Notification: GetLazyState"
	}
	equal(t, "sys_journal", strings.Join(e.journal(t, id), ", "), "Command: Input, "+get+", Command: SetState, Command: Output")
	rows = e.query(t, "SELECT name, ty, public, deployment_id FROM sys_service WHERE name = '"+e.prefix+"Counter'")
	equal(t, "sys_service", rows, []map[string]any{{"name": e.prefix + "Counter", "ty": "virtual_object", "public": true, "deployment_id": e.id}})
	equal(t, "nothing", e.query(t, "SELECT id FROM sys_invocation WHERE id = '"+unknownID+"'"), []map[string]any{})
	bad := e.adm(t, request{path: "/query", body: `{"query":"SELEKT"}`, header: map[string]string{"Accept": "application/json"}})
	if bad.status != 400 {
		t.Errorf("bad SQL: %v", bad)
	}
}

func TestNextServiceOpenAPI(t *testing.T) {
	t.Parallel()
	e := goBidi(t)
	for service, paths := range map[string][]string{
		"Half":    {"/restate/call/" + e.prefix + "Half/open", "/restate/send/" + e.prefix + "Half/open"},
		"Counter": {"/restate/call/" + e.prefix + "Counter/{key}/add", "/restate/send/" + e.prefix + "Counter/{key}/add"},
		"Flow":    {"/restate/call/" + e.prefix + "Flow/{key}/run", "/restate/workflow/" + e.prefix + "Flow/{key}/attach"},
	} {
		a := e.adm(t, request{method: "GET", path: "/services/" + e.prefix + service + "/openapi"})
		check(t, a, want{status: 200, header: jsonType, json: `{"openapi":"3.1.0","info":{"title":"` + e.prefix + service + `","version":"<some>","...":""},"paths":"<any>","...":""}`})
		got := decode[struct{ Paths map[string]json.RawMessage }](t, a, 200)
		for _, p := range paths {
			if got.Paths[p] == nil {
				t.Errorf("%s: no path %s in %v", service, p, slices.Sorted(maps.Keys(got.Paths)))
			}
		}
		if got.Paths["/restate/call/"+e.prefix+"Half/closed"] != nil {
			t.Error("a private handler is described")
		}
	}
	check(t, e.adm(t, request{method: "GET", path: "/services/NoSuch/openapi"}), want{status: 404, json: adminError("The requested service 'NoSuch' does not exist"), header: jsonType})
}
