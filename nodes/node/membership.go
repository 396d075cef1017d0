package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"

	"perdure/control/admin"
	"perdure/control/registry"
	"perdure/nodes/worker"
)

// openSchemas follows the schema in the metadata.
func (n *Node) openSchemas(ctx context.Context, m *membership) (*registry.Registry, error) {
	r := registry.New(m.store, n.cfg.defaults(), n.log)
	run, cancel := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := r.Run(run); run.Err() == nil {
			n.fail(fmt.Errorf("follow the schema: %w", err))
		}
	})
	n.onStop("schema", func(context.Context) error {
		cancel(errors.New("the node stops"))
		wg.Wait()
		return nil
	})
	select {
	case <-r.Ready():
		return r, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("read the schema: %w", context.Cause(ctx))
	}
}

// adminServer makes the server of the admin API.
func (n *Node) adminServer(m *membership, schemas *registry.Registry, s *services, w *worker.Worker) (*http.Server, error) {
	d, err := s.discoverer(n.log)
	if err != nil {
		return nil, err
	}
	ac := admin.DefaultConfig()
	ac.Token = n.cfg.Admin.Token.Reveal()
	if l := n.cfg.Admin.ConcurrentRequests; l != nil {
		ac.ConcurrentRequests = *l
	}
	ac.RoutingHeaders = n.cfg.Admin.DeploymentRoutingHeaders
	if tcp, ok := n.listeners.admin.Addr().(*net.TCPAddr); ok && tcp.IP.IsLoopback() && ac.Token == "" {
		ac.Hosts = []string{"localhost"} // no page may reach it through a name that it makes point here
	}
	ac.ServerVersion = n.version
	ac.IngressURL = n.Addresses().Ingress
	ac.Features = map[string]bool{"protocol_v7": n.cfg.Features.ProtocolV7}
	if n.cfg.Features.ProtocolV7 {
		ac.MaxProtocol = 7
	}
	a, err := admin.New(ac, admin.Deps{
		Registry: schemas, Discoverer: discoverer{d}, Invocations: invocations{w}, Inspector: inspector{w}, Cluster: m, Log: n.log, Metrics: n.registerer(),
		Doctor: n.startCheckups(schemas, w),
	})
	if err != nil {
		return nil, err
	}
	return a.Server(), nil
}

func sortedKeys(m map[string]string) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}
