package sam

import (
	"strings"
	"testing"

	"perdure/integration/lambdaemu"
)

// TestPreflight: a dry run of a registration says in one answer what is missing, in words that name it. Of the reference
// server the outcome and the code are compared; its words are its own, and it lets $LATEST pass.
func TestPreflight(t *testing.T) {
	t.Parallel()
	s := server(t)
	good := faulty(t)
	fn := func(name, mode string) string {
		return deploy(t, lambdaemu.Function{Env: []string{"FAULTY=" + mode}}, name, good)
	}
	open := fn("own-preflight", "")
	foreign := fn("preflight-foreign", "")
	role := "arn:aws:iam::" + account + ":role/invoke-"
	emulator.AddRole(lambdaemu.Role{ARN: role + "stranger", Principals: []string{"arn:aws:iam::" + account + ":role/other-cluster"}, Invoke: []string{"*"}})
	emulator.AddRole(lambdaemu.Role{ARN: role + "other-id", Principals: []string{nodeRole}, ExternalID: "cluster-2", Invoke: []string{"*"}})
	emulator.AddRole(lambdaemu.Role{ARN: role + "powerless", Principals: []string{nodeRole}, ExternalID: externalID})
	throttled := deploy(t, lambdaemu.Function{Concurrency: 1}, "own-throttled", good)
	if err := emulator.SetConcurrency(prefix+"own-throttled", 0); err != nil {
		t.Fatal(err)
	}
	for _, x := range []struct {
		name, arn, role, code string
		says                  []string
	}{
		{"good", open, "", "", nil},
		{"no qualifier", prefix + "own-preflight", "", "HTTP 400", []string{"version or alias"}},
		{"latest", prefix + "own-preflight:$LATEST", "", "META0003", []string{"$LATEST", "publish a version", "worker.invoker.lambda-allow-latest"}},
		{"no ARN", "arn:aws:s3:::bucket", "", "HTTP 400", []string{"ARN must have 8 components"}},
		{"no such version", prefix + "own-preflight:7", "", "META0003", []string{"own-preflight:7", "publish this version"}},
		{"no such function", prefix + "own-nothing:1", "", "META0003", []string{"own-nothing:1", "correct account, region, name or version"}},
		{"may not call", foreign, "", "META0003", []string{"the server's own role needs lambda:InvokeFunction on " + foreign}},
		{"no such role", open, role + "nobody", "META0003", []string{"sts:AssumeRole on " + role + "nobody", "trust policy"}},
		{"role does not trust", open, role + "stranger", "META0003", []string{"sts:AssumeRole on " + role + "stranger", "trust policy"}},
		{"other external id", open, role + "other-id", "META0003", []string{"sts:AssumeRole on " + role + "other-id", "external id"}},
		{"may not assume", open, "arn:aws:iam::" + account + ":role/admin", "META0003", []string{"sts:AssumeRole on arn:aws:iam::" + account + ":role/admin"}},
		{"role may not call", open, role + "powerless", "META0003", []string{"role " + role + "powerless needs lambda:InvokeFunction on " + open}},
		{"protocol too old", fn("own-old", "old-protocol"), "", "META0012", []string{"[1, 3]", "[5, 7]", "Update the SDK"}},
		{"streams", fn("own-streams", "streams"), "", "META0015", []string{"request/response"}},
		{"no endpoint", fn("own-no-sdk", "no-sdk"), "", "META0003", []string{"own-no-sdk:1", "no answer of an SDK endpoint, does it run one?"}},
		{"does not start", fn("own-no-start", "exit-at-start"), "", "META0003", []string{"own-no-start:1", "Runtime.ExitError", "see the function's log"}},
		{"throttled", throttled, "", "META0003", []string{"own-throttled:1", "throttled"}},
	} {
		t.Run(x.name, func(t *testing.T) {
			args := []string{"deployments", "register", "--dry-run", "--lambda", x.arn}
			if x.role != "" {
				args = append(args, "--assume-role-arn", x.role)
			}
			out, failed, code := cli(t, s, args...)
			t.Logf("%d %s%s", code, out, failed)
			lets := serverKind != "perdure" && strings.HasSuffix(x.arn, "$LATEST")
			if (code == 0) != (x.says == nil || lets) {
				t.Errorf("exit code %d: %s%s", code, out, failed)
			}
			if serverKind != "perdure" {
				x.says = nil
			}
			if !lets && !strings.Contains(failed, x.code) {
				t.Errorf("no %s in %s", x.code, failed)
			}
			for _, w := range x.says {
				if !strings.Contains(failed, w) {
					t.Errorf("nothing of %q in %s", w, failed)
				}
			}
		})
	}
}
