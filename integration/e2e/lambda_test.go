package e2e

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"perdure/integration/lambdaemu"
	"perdure/integration/services"
)

// emulator plays Lambda for the server that the suite starts. It is nil for an external server, which cannot be told of it.
var emulator *lambdaemu.Emulator

const (
	lambdaFunction = "arn:aws:lambda:eu-west-1:123456789012:function:services"
	lambdaRole     = "arn:aws:iam::123456789012:role/invoke-services"
)

// startEmulator starts the emulator and points the AWS variables, which the server inherits, at it.
func startEmulator() error {
	e, err := lambdaemu.Start(lambdaemu.Config{})
	if err != nil {
		return err
	}
	e.AddUser(lambdaemu.User{AccessKeyID: "AKE2E", SecretAccessKey: "secret", AssumeRole: []string{lambdaRole}})
	e.AddRole(lambdaemu.Role{ARN: lambdaRole, Principals: []string{"*"}, ExternalID: "e2e", Invoke: []string{lambdaFunction + ":*"}})
	os.Unsetenv("AWS_PROFILE")
	os.Unsetenv("AWS_SESSION_TOKEN")
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_LAMBDA": e.URL(), "AWS_ENDPOINT_URL_STS": e.URL(), "AWS_ACCESS_KEY_ID": "AKE2E", "AWS_SECRET_ACCESS_KEY": "secret",
		"AWS_REGION": "us-east-1", "AWS_EXTERNAL_ID": "e2e", "AWS_CONFIG_FILE": os.DevNull,
		"AWS_SHARED_CREDENTIALS_FILE": os.DevNull, "AWS_EC2_METADATA_DISABLED": "true",
	} {
		if err := os.Setenv(k, v); err != nil {
			return errors.Join(fmt.Errorf("set %s: %w", k, err), e.Close())
		}
	}
	emulator = e
	return nil
}

// needLambda ends a case that needs Lambda when the server under test was not started here.
func needLambda(t *testing.T) {
	t.Helper()
	if emulator == nil {
		t.Skip("a server that the suite did not start does not know the emulator of Lambda")
	}
}

// startLambda builds the services as a function, deploys it and registers the version through a role.
func (v *variant) startLambda() error {
	dir, err := os.MkdirTemp("", "perdure-function-")
	if err != nil {
		return err
	}
	v.end = func() { os.RemoveAll(dir) }
	bootstrap := filepath.Join(dir, "bootstrap")
	build := exec.Command("go", "build", "-tags", "lambda.norpc", "-o", bootstrap, "perdure/integration/services/cmd/function")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return fmt.Errorf("build the function: %w: %s", err, out)
	}
	v.options.Memory = services.NewMemory()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return err
	}
	memory := &http.Server{Handler: v.options.Memory, ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- memory.Serve(ln) }()
	v.end = func() {
		v.options.Memory.Release()
		memory.Shutdown(context.Background())
		<-served
		os.RemoveAll(dir)
	}
	// More calls at once than tests make: after a refusal the server takes fewer for a while, and a test may hold all of those
	// until another call comes.
	err = emulator.CreateFunction(lambdaemu.Function{ARN: lambdaFunction, Timeout: patience, Concurrency: 64,
		Env: []string{"SERVICES_PREFIX=" + v.prefix, "SERVICES_MEMORY=http://" + ln.Addr().String()}})
	if err != nil {
		return err
	}
	arn, err := emulator.Publish(lambdaFunction, bootstrap)
	if err != nil {
		return err
	}
	v.id, err = shared().register(map[string]any{"arn": arn, "assume_role_arn": lambdaRole, "force": true, "breaking": true})
	return err
}
