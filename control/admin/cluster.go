package admin

import (
	"net/http"
)

func (c *call) health() error {
	c.a.respondEmpty(c.w, c.r, http.StatusOK)
	return nil
}

// features are the switches that clients of the published interface know. None of them is on unless configured.
var features = []string{
	"vqueues", "invoker_yield", "protocol_v7", "unique_random_seeds", "scoped_state_table_migration", "scoped_promise_table_migration",
	"scoped_virtual_objects", "kafka_scope", "vqueues_migration_skip_completed", "vqueues_async_refill", "vqueue_obsolete_cleanup",
	"preflight_invocation_termination_retention",
}

type versionJSON struct {
	Version  string          `json:"version"`
	Min      int             `json:"min_admin_api_version"`
	Max      int             `json:"max_admin_api_version"`
	Ingress  string          `json:"ingress_endpoint"`
	Features map[string]bool `json:"features"`
}

func (c *call) versions() error {
	cfg := &c.a.cfg
	v := versionJSON{cfg.InterfaceVersion, minVersion, maxVersion, cfg.IngressURL, make(map[string]bool, len(features))}
	for _, f := range features {
		v.Features[f] = false
	}
	for f, on := range cfg.Features {
		v.Features[f] = on
	}
	if cfg.MaxProtocol >= 7 {
		v.Features["protocol_v7"] = true
	}
	c.a.respond(c.w, c.r, http.StatusOK, v)
	return nil
}

type membersJSON struct {
	Members []uint32 `json:"members"`
}

type clusterHealthJSON struct {
	ClusterName string       `json:"cluster_name"`
	Metadata    *membersJSON `json:"metadata_cluster_health"`
}

func (c *call) clusterHealth() error {
	ctx, cancel := c.ctx()
	defer cancel()
	h, err := c.a.deps.Cluster.Health(ctx)
	if err != nil {
		return textError(http.StatusServiceUnavailable, err.Error())
	}
	j := clusterHealthJSON{ClusterName: h.ClusterName}
	if h.Members != nil {
		j.Metadata = &membersJSON{h.Members}
	}
	c.a.respond(c.w, c.r, http.StatusOK, j)
	return nil
}
