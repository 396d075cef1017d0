package lambda

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/lambda/types"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"perdure/invokers/transport"
)

// credentialError is a failure to get credentials; nothing was called.
type credentialError struct {
	role string // "" for the process's own
	err  error
}

func (e *credentialError) Error() string {
	if e.role == "" {
		return fmt.Sprintf("get AWS credentials: %v", e.err)
	}
	return fmt.Sprintf("assume role %s: %v", e.role, e.err)
}

func (e *credentialError) Unwrap() error { return e.err }

var errAnswerTooLarge = errors.New("response of the Lambda API is larger than Lambda allows")

// classify turns an error of the AWS SDK into one of ours. ctx is the exchange's.
func classify(ctx context.Context, fn ARN, role string, err error) *transport.Error {
	name := fn.String()
	out := &transport.Error{Endpoint: name, Err: err}
	var cred *credentialError
	var api smithy.APIError
	code := ""
	if errors.As(err, &api) {
		code = api.ErrorCode()
	}
	switch {
	case ctx.Err() != nil:
		return transport.ContextError(ctx, name)
	case errors.As(err, &cred):
		return credentials(out, cred, code)
	case errors.Is(err, context.DeadlineExceeded):
		out.Kind = transport.Timeout
	case errors.Is(err, errAnswerTooLarge):
		out.Kind = transport.Protocol
	case code != "":
		return apiFailure(out, fn, role, code)
	default:
		out.Kind = networkKind(err)
	}
	return out
}

func credentials(out *transport.Error, cred *credentialError, code string) *transport.Error {
	out.Kind, out.Err = transport.Connect, cred
	if deniedCodes[code] {
		out.Kind = transport.AccessDenied
		if cred.role != "" {
			out.Err = fmt.Errorf("the server's own role needs sts:AssumeRole on %s, and that role's trust policy must name it (and the external id, if one is set): %w", cred.role, cred)
		}
	}
	return out
}

// deniedCodes are the API's words for credentials that are not good enough.
var deniedCodes = map[string]bool{
	"AccessDenied": true, "AccessDeniedException": true, "UnrecognizedClientException": true, "InvalidClientTokenId": true,
	"InvalidSignatureException": true, "SignatureDoesNotMatch": true, "ExpiredToken": true, "ExpiredTokenException": true,
	"MissingAuthenticationToken": true, "MissingAuthenticationTokenException": true, "IncompleteSignature": true,
	"KMSAccessDeniedException": true,
}

// notStarted are the API's words for a function that exists and could not be started.
var notStarted = map[string]bool{
	"CodeArtifactUserDeletedException": true, "CodeArtifactUserFailedException": true, "CodeArtifactUserPendingException": true,
	"EC2AccessDeniedException": true, "EC2UnexpectedException": true, "EFSIOException": true, "EFSMountConnectivityException": true,
	"EFSMountFailureException": true, "EFSMountTimeoutException": true, "ENINotReadyException": true, "InvalidRuntimeException": true,
	"InvalidSecurityGroupIDException": true, "InvalidSubnetIDException": true, "InvalidZipFileException": true,
	"KMSDisabledException": true, "KMSInvalidStateException": true, "KMSNotFoundException": true, "ModeNotSupportedException": true,
	"NoPublishedVersionException": true, "RecursiveInvocationException": true, "ResourceConflictException": true,
	"ResourceNotReadyException": true, "S3FilesMountConnectivityException": true, "S3FilesMountFailureException": true,
	"S3FilesMountTimeoutException": true, "SnapStartException": true, "SnapStartNotReadyException": true,
	"SnapStartRegenerationFailureException": true, "SnapStartTimeoutException": true,
}

// throttledCodes are the API's words for "not now".
var throttledCodes = map[string]bool{
	"TooManyRequestsException": true, "EC2ThrottledException": true, "ENILimitReachedException": true,
	"SubnetIPAddressLimitReachedException": true, "Throttling": true, "ThrottlingException": true,
	"RequestLimitExceeded": true, "ServiceQuotaExceededException": true,
}

// apiFailure gives an error that the Lambda API answered its kind.
func apiFailure(out *transport.Error, fn ARN, role, code string) *transport.Error {
	status := 0
	var resp *smithyhttp.ResponseError
	if errors.As(out.Err, &resp) {
		status = resp.HTTPStatusCode()
	}
	switch {
	case throttledCodes[code] || status == 429:
		out.Kind = transport.Throttled
		out.RetryAfter = retryAfter(out.Err)
	case deniedCodes[code] || status == 401 || status == 403:
		out.Kind = transport.AccessDenied
		who := "the server's own role"
		if role != "" {
			who = "role " + role
		}
		out.Err = fmt.Errorf("%s needs lambda:InvokeFunction on %s: %w", who, fn, out.Err)
	case code == "ResourceNotFoundException" || status == 404:
		out.Kind = transport.NotFound
		out.Err = fmt.Errorf("publish this version, or correct account, region, name or version in the ARN: %w", out.Err)
	case code == "RequestTooLargeException" || code == "SerializedRequestEntityTooLargeException" || status == 413:
		out.Kind = transport.TooLarge
	case notStarted[code]:
		out.Kind = transport.FunctionFailed
	case status >= 400 && status < 500:
		out.Kind = transport.Protocol
	default: // ServiceException and other faults of the service: it may have run
		out.Kind = transport.Reset
	}
	return out
}

// retryAfter is what the API asks to wait, 0 if it does not.
func retryAfter(err error) time.Duration {
	var throttle *types.TooManyRequestsException
	if errors.As(err, &throttle) && throttle.RetryAfterSeconds != nil {
		if n, err := strconv.ParseUint(*throttle.RetryAfterSeconds, 10, 31); err == nil {
			return time.Duration(n) * time.Second
		}
	}
	return 0
}

// networkKind tells a call that was never sent from one that may have been.
func networkKind(err error) transport.Kind {
	var op *net.OpError
	var dns *net.DNSError
	var timeout net.Error
	switch {
	case errors.As(err, &op) && op.Op == "dial", errors.As(err, &dns):
		return transport.Connect
	case errors.As(err, &timeout) && timeout.Timeout():
		return transport.Timeout
	}
	return transport.Reset
}

// maxErrorText bounds what of a function's error is kept.
const maxErrorText = 4 << 10

// functionError is the failure of a function, told by the API with a payload.
func functionError(fn ARN, payload []byte) *transport.Error {
	text := string(payload[:min(len(payload), maxErrorText)])
	var e struct {
		Type string `json:"errorType"`
	}
	hint := ""
	if json.Unmarshal(payload, &e) == nil { // else it is no JSON, and has no type
		hint = hints[e.Type]
	}
	return &transport.Error{Kind: transport.FunctionFailed, Endpoint: fn.String(),
		Err: fmt.Errorf("function returned an error during execution: %s%s", text, hint)}
}

// hints explain the failures of the runtime itself.
var hints = map[string]string{
	"Sandbox.Timedout":              " (raise the function's timeout, or split the work into steps that return)",
	"Runtime.ExitError":             " (the process ended: out of memory, or a crash; see the function's log)",
	"Function.ResponseSizeTooLarge": " (what the handler produced in one go is over 6 MB)",
}
