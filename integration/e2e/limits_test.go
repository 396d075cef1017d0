package e2e

import (
	"encoding/json"
	"testing"
	"time"

	"perdure/integration/harness"
	"perdure/integration/scripted"
)

// clampedInfo and ignoredInfo are what is said of an option that a deployment asks for and does not get.
func clampedInfo(option string) map[string]string {
	return map[string]string{"code": "RT0022", "message": "The configured " + option + " is clamped to the maximum server limit."}
}

func ignoredInfo(timeout, who string) map[string]string {
	return map[string]string{"code": "RT0021", "message": "The configured inactivity_timeout " + timeout + " will not be applied because the " + who + " is exposed in Request/Response mode."}
}

// TestServerLimits: what a service asks for beyond the server's limits is cut down, and said so wherever it is shown.
func TestServerLimits(t *testing.T) {
	t.Parallel()
	if target.server == nil {
		t.Skip("the server under test was started by somebody else, so nobody can give it limits")
	}
	srv := harness.Start(t, target.kind, map[string]string{"MAX_JOURNAL_RETENTION": "2h", "MAX_IDEMPOTENCY_RETENTION": "3h",
		"MAX_WORKFLOW_COMPLETION_RETENTION": "4h", "DEFAULT_NUM_PARTITIONS": "1"})
	c := newClient(srv.Ingress(), srv.Admin())
	s := startScripted(t, false)
	ms := func(d time.Duration) int64 { return d.Milliseconds() }
	const hour = time.Hour
	s.Discover(scripted.Discovery{Body: scripted.Manifest("REQUEST_RESPONSE", nil,
		scripted.Service{Name: "Limited", Handlers: []scripted.Handler{
			{Name: "a", Extra: map[string]any{"journalRetention": ms(9 * hour), "inactivityTimeout": 5000}},
			{Name: "b", Extra: map[string]any{"idempotencyRetention": ms(9 * hour)}},
			{Name: "c", Extra: map[string]any{"journalRetention": ms(2 * hour)}},
		}, Extra: map[string]any{"inactivityTimeout": 0, "journalRetention": ms(9 * hour), "idempotencyRetention": ms(9 * hour)}},
		scripted.Service{Name: "LimitedFlow", Type: "WORKFLOW", Handlers: []scripted.Handler{
			{Name: "run", Type: "WORKFLOW", Extra: map[string]any{"workflowCompletionRetention": ms(9 * hour), "journalRetention": ms(9 * hour)}},
		}},
	)})
	type object = map[string]any
	handler := func(name string, with object) object {
		h := object{"name": name, "public": true, "input_description": "*/*", "output_description": "application/json", "retry_policy": object{"max_attempts": nil}}
		for k, v := range with {
			h[k] = v
		}
		return h
	}
	service := func(name, ty string, with object) object {
		v := object{"name": name, "ty": ty, "deployment_id": "<dp>", "revision": 1, "public": true, "abort_timeout": "10m", "enable_lazy_state": false,
			"inactivity_timeout": "0s", "retry_policy": json.RawMessage(defaultRetry)}
		for k, w := range with {
			v[k] = w
		}
		return v
	}
	limited := service("Limited", "Service", object{"journal_retention": "2h", "idempotency_retention": "3h",
		"info": []any{ignoredInfo("0s", "service"), clampedInfo("journal_retention"), clampedInfo("idempotency_retention")},
		"handlers": []any{
			handler("a", object{"journal_retention": "2h", "info": []any{ignoredInfo("5s", "handler"), clampedInfo("journal_retention")}}),
			handler("b", object{"idempotency_retention": "3h", "info": []any{clampedInfo("idempotency_retention")}}),
			handler("c", object{"journal_retention": "2h"}),
		}})
	flow := service("LimitedFlow", "Workflow", object{"journal_retention": "2h", "idempotency_retention": "3h", "workflow_completion_retention": "4h",
		"info": []any{clampedInfo("journal_retention"), clampedInfo("idempotency_retention"), clampedInfo("workflow_completion_retention")}, // the defaults
		"handlers": []any{
			handler("run", object{"ty": "Workflow", "journal_retention": "2h", "info": []any{clampedInfo("journal_retention")}}),
		}})
	registered := c.post(t, "/deployments", map[string]any{"uri": s.URL})
	check(t, sorted(t, registered, "services", "handlers"), want{status: 201, json: toJSON(t, object{"id": "<dp>", "min_protocol_version": 5, "max_protocol_version": 7,
		"services": []any{limited, flow}, "...": ""})})
	check(t, sorted(t, c.adm(t, request{method: "GET", path: "/services/Limited"}), "handlers"), want{status: 200, json: toJSON(t, limited)})
	check(t, c.adm(t, request{method: "GET", path: "/services/LimitedFlow/handlers/run"}), want{status: 200, json: toJSON(t, flow["handlers"].([]any)[0])})
	// An operator cannot go beyond the limits either.
	a := c.adm(t, request{method: "PATCH", path: "/services/LimitedFlow", body: `{"workflow_completion_retention":"5h"}`})
	check(t, a, want{status: 200, json: toJSON(t, flow)})
}
