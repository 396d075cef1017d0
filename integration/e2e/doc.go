// Package e2e tests a whole server through its public interfaces: the ingress, the admin API and the service protocol.
//
// The suite knows nothing of the server's code, so it runs against any server with these interfaces:
//
//	go test ./integration/e2e                                  a Perdure built from this module
//	PERDURE_BINARY=… go test ./integration/e2e                 that executable
//	PERDURE_E2E_SERVER=restate RESTATE_SERVER=… go test …      another server, by its definition in integration/harness
//	PERDURE_E2E_INGRESS=… PERDURE_E2E_ADMIN=… go test …        one that runs already, and can reach loopback
//
// The whole suite can be run in several modes (see modes), such as one partition, or without waiting on open streams:
//
//	go test ./integration/e2e -args -e2e.mode=suspending       or PERDURE_E2E_MODE=suspending
//
// Behaviour seen through an SDK is tested for every variant of the services (see variants): Go and TypeScript,
// bidirectional and request/response, eager and lazy state, and always suspending.
//
// Where two servers differ on purpose, the case says so by name and the reason stands in differences_test.go.
//
// Tests named TestNext… cover features beyond the first release: workflows and promises, attach from handlers, pause and
// resume, restart, state changes by the operator, batch operations. Leave them out with -skip '^TestNext'.
package e2e
