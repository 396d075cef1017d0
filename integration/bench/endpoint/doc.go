// Package endpoint is the service endpoint of the benchmarks: Greeter, Counter, Store, Steps, Chain, Fan, Sink, Gated,
// Sleeper and Awaker, served with a protocol engine that costs as little as can be, so that the server is what is
// measured. How often handlers were attempted, which sends arrived and when sleepers woke can be read from its control
// port.
package endpoint
