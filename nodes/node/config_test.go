package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"
)

func named() Config {
	c := DefaultConfig()
	c.NodeName = "n1"
	return c
}

func TestDefaultConfigIsValid(t *testing.T) {
	c := named()
	if err := c.Validate(); err != nil {
		t.Fatal(err)
	}
}

func TestValidateNamesKeyAndRule(t *testing.T) {
	zero, negative := 0, -time.Second
	for _, tc := range []struct {
		change    func(*Config)
		key, rule string
	}{
		{func(c *Config) { c.NodeName = "" }, "node-name", "is empty"},
		{func(c *Config) { c.NodeName = "../x" }, "node-name", "names a directory"},
		{func(c *Config) { c.ClusterName = "" }, "cluster-name", "is empty"},
		{func(c *Config) { c.BaseDir = "" }, "base-dir", "is empty"},
		{func(c *Config) { c.DefaultNumPartitions = 65536 }, "default-num-partitions", "between 1 and 65535"},
		{func(c *Config) { c.DefaultReplication = 3 }, "default-replication", "must be 1"},
		{func(c *Config) { c.Worker.Invoker.AdditionalRequestHeaders = map[string]string{"connection": "close"} }, "worker.invoker.additional-request-headers", "'connection'"},
		{func(c *Config) { c.Worker.Invoker.AdditionalRequestHeaders = map[string]string{"X-A": "b", "x-a": "c"} }, "worker.invoker.additional-request-headers", `has both "X-A" and "x-a", which are one header`},
		{func(c *Config) { c.ShutdownTimeout = 0 }, "shutdown-timeout", "longer than"},
		{func(c *Config) { c.Roles = append(c.Roles, "cook") }, "roles", `has "cook"`},
		{func(c *Config) { c.Roles = c.Roles[1:] }, "roles", `lacks "http-ingress"`},
		{func(c *Config) { c.TLS.Mode = "require" }, "tls.mode", "no TLS"},
		{func(c *Config) { c.Ingress.ConcurrentRequests = &zero }, "ingress.concurrent-api-requests-limit", "at least 1"},
		{func(c *Config) { c.Ingress.RequestSizeLimit = 33 * MiB }, "ingress.request-size-limit", "between 1 B and 32.0 MiB"},
		{func(c *Config) { c.Ingress.RequestMemoryLimit = MiB }, "ingress.request-memory-limit", "between 32.0 MiB and"},
		{func(c *Config) { c.Ingress.BindAddress = "8080" }, "ingress.bind-address", "host:port"},
		{func(c *Config) { c.Ingress.BindAddress = "x:http" }, "ingress.bind-address", `has port "http"`},
		{func(c *Config) { c.Ingress.AdvertisedAddress = "here" }, "ingress.advertised-address", "must be a URL"},
		{func(c *Config) { c.Admin.BindAddress = "0.0.0.0:9070" }, "admin.bind-address", "--insecure"},
		{func(c *Config) { c.Admin.BindAddress = ":9070" }, "admin.bind-address", "--insecure"},
		{func(c *Config) { c.Fabric.BindIP = "::" }, "bind-address", "--insecure"},
		{func(c *Config) { c.Admin.BindAddress = "127.0.0.1:8080" }, "ingress.bind-address", "like admin.bind-address"},
		{func(c *Config) { c.MetadataClient.Addresses = []string{"http://other:5122"} }, "metadata-client.addresses", "cannot join"},
		{func(c *Config) { c.Retention.MaxJournal = &negative }, "max-journal-retention", "negative"},
		{func(c *Config) { c.Retention.MaxWorkflow = &negative }, "max-workflow-completion-retention", "negative"},
		{func(c *Config) { c.RetryPolicy.InitialInterval = 0 }, "default-retry-policy.initial-interval", "longer than"},
		{func(c *Config) { c.RetryPolicy.MaxInterval = 1 }, "default-retry-policy.max-interval", "shorter"},
		{func(c *Config) { c.RetryPolicy.ExponentiationFactor = 0.5 }, "default-retry-policy.exponentiation-factor", "at least 1"},
		{func(c *Config) { c.RetryPolicy.OnMaxAttempts = "cry" }, "default-retry-policy.on-max-attempts", "pause or kill"},
		{func(c *Config) { c.MetadataServer.ElectionTicks = 0 }, "metadata-server.raft-election-tick", "at least 1"},
		{func(c *Config) { c.Worker.MaxCommandBatchSize = 0 }, "worker.max-command-batch-size", "at least 1"},
		{func(c *Config) { c.Worker.Invoker.MessageSizeLimit = GiB }, "worker.invoker.message-size-limit", "between"},
		{func(c *Config) { c.Worker.Invoker.StreamWindow = 1 }, "worker.invoker.http2-initial-stream-window-size", "between"},
	} {
		c := named()
		tc.change(&c)
		err := c.Validate()
		var invalid *InvalidError
		if !errors.As(err, &invalid) || invalid.Key != tc.key || !strings.Contains(invalid.Rule, tc.rule) {
			t.Errorf("want %s ... %s, got %v", tc.key, tc.rule, err)
		}
	}
}

func TestInsecureAllowsOtherMachines(t *testing.T) {
	c := named()
	c.Fabric.BindIP = "0.0.0.0"
	c.Insecure = true
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
	for got, want := range map[string]string{c.FabricAddress(): "0.0.0.0:5122", c.AdminAddress(): "0.0.0.0:9070", c.IngressAddress(): "0.0.0.0:8080"} {
		if got != want {
			t.Errorf("listens on %s, want %s", got, want)
		}
	}
}

func TestOwnMetadataAddressIsAccepted(t *testing.T) {
	c := named()
	c.Fabric.AdvertisedAddress = "http://perdure-0:5122/"
	c.MetadataClient.Addresses = []string{"http://perdure-0:5122", "http://127.0.0.1:5122/", "localhost:5122", "http://n1:5122"}
	if err := c.Validate(); err != nil {
		t.Error(err)
	}
}

func TestListenAddresses(t *testing.T) {
	port := 1234
	c := named()
	c.Admin.BindPort = &port
	c.Ingress.BindIP = "::1"
	c.Fabric.BindAddress = "127.0.0.2:7"
	for got, want := range map[string]string{c.FabricAddress(): "127.0.0.2:7", c.AdminAddress(): "127.0.0.1:1234", c.IngressAddress(): "[::1]:8080"} {
		if got != want {
			t.Errorf("listens on %s, want %s", got, want)
		}
	}
	c.Fabric.UseRandomPorts = true
	if got := c.AdminAddress(); got != "127.0.0.1:0" {
		t.Errorf("with random ports admin listens on %s", got)
	}
	if err := c.Validate(); err != nil {
		t.Errorf("random ports: %v", err)
	}
}

func TestAdvertised(t *testing.T) {
	bound := &net.TCPAddr{IP: net.IPv4zero, Port: 8080}
	for _, tc := range []struct {
		l    Listener
		want string
	}{
		{Listener{}, "http://127.0.0.1:8080/"},
		{Listener{AdvertisedHost: "box"}, "http://box:8080/"},
		{Listener{AdvertisedAddress: "https://a.example"}, "https://a.example/"},
	} {
		if got := tc.l.Advertised(bound); got != tc.want {
			t.Errorf("%+v: %s, want %s", tc.l, got, tc.want)
		}
	}
	if got := (Listener{}).Advertised(&net.TCPAddr{IP: net.ParseIP("::1"), Port: 1}); got != "http://[::1]:1/" {
		t.Errorf("advertises %s", got)
	}
}

func TestSecretsDoNotShow(t *testing.T) {
	s := Secret("hunter2")
	c := named()
	c.Admin.Token = s
	encoded, err := json.Marshal(c.Admin)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{fmt.Sprint(s), fmt.Sprintf("%v %+v %#v %q %x %d", s, s, s, s, s, s), fmt.Sprintf("%+v", c), fmt.Sprintf("%#v", c), string(encoded)} {
		if strings.Contains(out, "hunter2") || strings.Contains(out, fmt.Sprintf("%x", "hunter2")) {
			t.Errorf("shows the secret: %s", out)
		}
	}
	if s.Reveal() != "hunter2" || Secret("").String() != "" {
		t.Error("the secret or its absence is lost")
	}
}
