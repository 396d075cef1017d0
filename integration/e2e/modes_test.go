package e2e

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"slices"
)

// modes are the ways to run the whole suite: options of every server that the suite starts. The deployments of the suite
// set some options themselves (see variants), and those win.
var modes = map[string]map[string]string{
	"default": {},
	// suspending: the server offers no stream to wait on, so each wait of a handler is a suspension and a replay.
	"suspending": {"WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s"},
	// lazy: no state goes with the start of an attempt; handlers ask for each key.
	"lazy": {"WORKER__INVOKER__DISABLE_EAGER_STATE": "true"},
	// one-partition: all invocations share a log and a state machine, so calls between them never leave it.
	"one-partition": {"DEFAULT_NUM_PARTITIONS": "1"},
	// many-partitions: nearly every call, signal and answer crosses partitions.
	"many-partitions": {"DEFAULT_NUM_PARTITIONS": "64"},
	// v7: version 7 of the service protocol with every deployment that speaks it.
	"v7": {"EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true"},
	// v7-suspending: the same, with the awaited futures deciding about each resumption.
	"v7-suspending": {"EXPERIMENTAL_ENABLE_PROTOCOL_V7": "true", "WORKER__INVOKER__INACTIVITY_TIMEOUT": "0s"},
}

var modeFlag = flag.String("e2e.mode", "", "run the suite in this mode (default: PERDURE_E2E_MODE, else \"default\")")

// mode is the name of the mode of this run.
func mode() string {
	for _, m := range []string{*modeFlag, os.Getenv("PERDURE_E2E_MODE")} {
		if m != "" {
			return m
		}
	}
	return "default"
}

// noEagerState reports whether the server keeps state back in this run.
func noEagerState() bool { return modes[mode()]["WORKER__INVOKER__DISABLE_EAGER_STATE"] == "true" }

// version7 reports whether the server speaks version 7 of the service protocol in this run.
func version7() bool { return modes[mode()]["EXPERIMENTAL_ENABLE_PROTOCOL_V7"] == "true" }

// inactivity is the inactivity timeout of services that say nothing, as the admin API shows it.
func inactivity() string {
	if v := modes[mode()]["WORKER__INVOKER__INACTIVITY_TIMEOUT"]; v != "" {
		return v
	}
	return "1m"
}

// inMode adds the options of the mode to those of a server. The server's own win: a test that needs an option is about it.
func inMode(config map[string]string) (map[string]string, error) {
	m, ok := modes[mode()]
	if !ok {
		return nil, fmt.Errorf("there is no mode %q; the modes are %q", mode(), slices.Sorted(maps.Keys(modes)))
	}
	all := maps.Clone(m)
	maps.Copy(all, config)
	return all, nil
}
