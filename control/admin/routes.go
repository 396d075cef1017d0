package admin

import "net/http"

// route is one operation of the API. Those with a summary are in the API's own document.
type route struct {
	method, path string
	handler      handlerFunc
	id, summary  string
	// query are the names of optional parameters.
	query []string
	// request and response are values of the types of the bodies, nil for none.
	request, response any
	// status of success, 200 when 0.
	status     int
	deprecated bool
}

func (a *Admin) routes() []route {
	list := []route{
		{method: http.MethodGet, path: "/health", handler: (*call).health, id: "health", summary: "Whether the server lives."},
		{method: http.MethodGet, path: "/version", handler: (*call).versions, id: "version", summary: "Versions and features.", response: versionJSON{}},
		{method: http.MethodGet, path: "/openapi", handler: (*call).ownOpenAPI, id: "openapi", summary: "This document."},
		{method: http.MethodGet, path: "/cluster-health", handler: (*call).clusterHealth, id: "cluster_health", summary: "Members of the metadata cluster.", response: clusterHealthJSON{}, deprecated: true},

		{method: http.MethodGet, path: "/deployments", handler: (*call).listDeployments, id: "list_deployments", summary: "All deployments.", response: struct {
			Deployments []deploymentJSON[serviceRefJSON] `json:"deployments"`
		}{}},
		{method: http.MethodPost, path: "/deployments", handler: (*call).register, id: "create_deployment", summary: "Register the deployment at a URI or ARN.", request: registerRequest{}, response: registeredJSON{}, status: http.StatusCreated},
		{method: http.MethodGet, path: "/deployments/:deployment", handler: (*call).getDeployment, id: "get_deployment", summary: "A deployment with its services.", response: deploymentJSON[serviceJSON]{}},
		{method: http.MethodPatch, path: "/deployments/:deployment", handler: (*call).updateDeployment, id: "update_deployment", summary: "Change address, headers or services of a deployment in place.", request: updateRequest{}, response: deploymentJSON[serviceJSON]{}},
		{method: http.MethodPut, path: "/deployments/:deployment", handler: (*call).putDeployment},
		{method: http.MethodDelete, path: "/deployments/:deployment", handler: (*call).deleteDeployment, id: "delete_deployment", summary: "Remove a deployment that is drained, or with force any.", query: []string{"force"}, status: http.StatusAccepted},

		{method: http.MethodGet, path: "/services", handler: (*call).listServices, id: "list_services", summary: "The latest revisions of all services.", response: struct {
			Services []serviceJSON `json:"services"`
		}{}},
		{method: http.MethodGet, path: "/services/:service", handler: (*call).getService, id: "get_service", summary: "The latest revision of a service.", response: serviceJSON{}},
		{method: http.MethodPatch, path: "/services/:service", handler: (*call).modifyService, id: "modify_service", summary: "Change options of a service until its next registration.", request: modifyServiceRequest{}, response: serviceJSON{}},
		{method: http.MethodGet, path: "/services/:service/handlers", handler: (*call).listHandlers, id: "list_service_handlers", summary: "The handlers of a service.", response: struct {
			Handlers []handlerJSON `json:"handlers"`
		}{}},
		{method: http.MethodGet, path: "/services/:service/handlers/:handler", handler: (*call).getHandler, id: "get_service_handler", summary: "A handler of a service.", response: handlerJSON{}},
		{method: http.MethodGet, path: "/services/:service/openapi", handler: (*call).serviceOpenAPI, id: "get_service_openapi", summary: "The OpenAPI document of a service, for its callers."},
		{method: http.MethodPost, path: "/services/:service/state", handler: (*call).patchState, id: "modify_service_state", summary: "Replace the state of a key.", request: patchStateRequest{}, status: http.StatusAccepted},

		{method: http.MethodGet, path: "/perdure/doctor", handler: (*call).checkup, id: "checkup", summary: "What invocations wait for, and those that nothing makes go on.", response: Checkup{}},
		{method: http.MethodGet, path: "/perdure/doctor/:invocation_id", handler: (*call).diagnose, id: "diagnose_invocation", summary: "What an invocation waits for, and who will wake it.", response: Diagnosis{}},

		{method: http.MethodDelete, path: "/invocations/:invocation_id", handler: (*call).deleteInvocation, id: "delete_invocation", summary: "Cancel, kill or purge without an answer.", query: []string{"mode"}, status: http.StatusAccepted, deprecated: true},
	}
	list = append(list,
		route{method: http.MethodGet, path: "/perdure/invocations", handler: (*call).listInvocations, id: "list_invocations", summary: "Invocations, the newest first.",
			query: []string{"status", "service", "handler", "key", "deployment", "limit"}, response: struct {
				Invocations []InvocationInfo `json:"invocations"`
			}{}},
		route{method: http.MethodGet, path: "/perdure/invocations/:invocation_id", handler: (*call).getInvocation, id: "get_invocation", summary: "An invocation with its last failure, journal and events.",
			response: InvocationInfo{}},
	)
	summaries := map[string]string{
		"cancel": "Ask an invocation to end itself.", "kill": "End an invocation at once, without its cooperation.", "purge": "Forget a completed invocation.",
		"purge-journal": "Forget the journal of a completed invocation.", "pause": "Stop an invocation until it is resumed.", "resume": "Let a paused or suspended invocation run.",
		"restart-as-new": "Start a copy of a completed invocation.",
	}
	for _, v := range verbs {
		r := route{method: http.MethodPatch, path: "/invocations/:invocation_id/" + v.name, handler: operate(v), id: v.name + "_invocation", summary: summaries[v.name]}
		switch v.name {
		case "resume":
			r.query = []string{"deployment"}
		case "restart-as-new":
			r.query = []string{"from", "deployment"}
			r.response = struct {
				ID string `json:"new_invocation_id"`
			}{}
		}
		list = append(list, r, route{method: http.MethodPost, path: "/internal/invocations_batch_operations/" + v.name, handler: batch(v)})
	}
	for _, missing := range []struct {
		what, instead string
		routes        []route
	}{
		{"SQL introspection", "GET /perdure/invocations and /perdure/doctor (perdure invocations list, perdure doctor)", []route{{method: http.MethodPost, path: "/query"}}},
		{"subscriptions to Kafka", "", []route{
			{method: http.MethodGet, path: "/subscriptions"}, {method: http.MethodPost, path: "/subscriptions"},
			{method: http.MethodGet, path: "/subscriptions/:id"}, {method: http.MethodDelete, path: "/subscriptions/:id"},
			{method: http.MethodGet, path: "/kafka-clusters"}, {method: http.MethodPost, path: "/kafka-clusters"}, {method: http.MethodGet, path: "/kafka-clusters/:id"},
			{method: http.MethodPatch, path: "/kafka-clusters/:id"}, {method: http.MethodDelete, path: "/kafka-clusters/:id"},
		}},
		{"concurrency rules and their queues", "", []route{
			{method: http.MethodPut, path: "/limits/rules"}, {method: http.MethodPost, path: "/limits/rules/bulk-delete"},
			{method: http.MethodPost, path: "/vqueues/:id/pause"}, {method: http.MethodPost, path: "/vqueues/:id/resume"},
		}},
		{"conversion of values by the SDK", "", []route{
			{method: http.MethodPost, path: "/internal/services/:service/serdes/decode/*"}, {method: http.MethodPost, path: "/internal/services/:service/serdes/encode/*"},
		}},
	} {
		refuse := func(*call) error { return notSupported(missing.what, missing.instead) }
		for _, r := range missing.routes {
			r.handler = refuse
			list = append(list, r)
		}
	}
	return list
}
