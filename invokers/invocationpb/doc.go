// Package invocationpb holds the generated messages of an invocation's vocabulary: targets, results,
// sinks, futures and the effects of attempts. Ingress, invokers, processors and the log share them.
package invocationpb
