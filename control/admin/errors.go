package admin

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sort"
	"strings"

	"github.com/labstack/echo/v4"

	"perdure/control/ident"
	"perdure/control/schema"
)

// All texts of errors that clients see are here, or with the rules in package schema.

// apiError is an error with a JSON body.
type apiError struct {
	status  int
	code    string // restate_code; empty for null
	message string
}

func (e *apiError) Error() string { return e.message }

// rejection is an error with a plain text body: what is wrong with the form of a request.
type rejection struct {
	status int
	text   string
}

func (e *rejection) Error() string { return e.text }

func textError(status int, text string) error { return &rejection{status, text} }

// emptyError is an error without a body.
type emptyError int

func (e emptyError) Error() string { return http.StatusText(int(e)) }

// errorBody is the JSON body of errors. The code is always there, null when there is none.
type errorBody struct {
	Message string  `json:"message"`
	Code    *string `json:"restate_code"`
}

func badRequest(message string) error {
	return &apiError{status: http.StatusBadRequest, message: message}
}

func badField(field string, reason error) error {
	return badRequest("The request field '" + field + "' is invalid. Reason: " + reason.Error())
}

func badQuery(param string, reason error) error {
	return badRequest("The query parameter '" + param + "' is invalid. Reason: " + reason.Error())
}

func badPathID(param, value string, reason error) error {
	return textError(http.StatusBadRequest, "Invalid URL: Cannot parse `"+param+"` with value `"+value+"`: "+reason.Error())
}

func serviceNotFound(name string) error {
	return &apiError{status: http.StatusNotFound, message: "The requested service '" + name + "' does not exist"}
}

func handlerNotFound(service, handler string) error {
	return &apiError{status: http.StatusNotFound, message: "The requested handler '" + handler + "' on service '" + service + "' does not exist"}
}

func notInRegistry(what string) error {
	return &apiError{status: http.StatusNotFound, message: "not found in the schema registry: " + what}
}

func alreadyExists(id ident.DeploymentID) error {
	return &apiError{status: http.StatusConflict, message: "Conflict: deployment " + id.String() + " already exists"}
}

func routingError(err error) error {
	return &apiError{status: http.StatusServiceUnavailable, message: "Error when routing the request internally. Reason: " + err.Error()}
}

var (
	errPut          = &apiError{status: http.StatusMethodNotAllowed, message: "PUT deployment is deprecated, use PATCH instead"}
	errUpdateLambda = &apiError{status: http.StatusBadRequest, message: "cannot update the deployment, as the deployment type is http while the update options are for type lambda"}
	errUpdateHTTP   = &apiError{status: http.StatusBadRequest, message: "cannot update the deployment, as the deployment type is lambda while the update options are for type http"}
	errCheckups     = &apiError{status: http.StatusTooManyRequests, message: fmt.Sprintf("%d checkups are under way, and each reads all invocations", maxCheckups)}
	errAuth         = &apiError{status: http.StatusBadRequest, message: "The request field 'auth' is invalid. Reason: this server cannot obtain identity tokens, put an authorization header into additional_headers"}
)

// notSupported is the error of what this server does not have; instead says what to use, if there is anything.
func notSupported(what, instead string) error {
	text := "not supported by this server: " + what
	if instead != "" {
		text += "; use " + instead
	}
	return &apiError{status: http.StatusNotImplemented, message: text}
}

func batchTooLarge(n int) error {
	return badRequest(fmt.Sprintf("Batch size %d exceeds maximum allowed size of %d", n, maxBatch))
}

// schemaError maps what the rules of package schema say. Refusals of what a deployment announced carry the code in front of
// their text; those that a discovery could have found itself carry it twice, like all errors of discovery.
func schemaError(err error) error {
	var (
		refused *schema.ConflictError
		found   *DiscoveryError
		noDp    *schema.DeploymentNotFoundError
	)
	switch {
	case errors.As(err, &found):
		return &apiError{http.StatusInternalServerError, found.Code, coded(found.Code, coded(found.Code, found.Message))}
	case errors.As(err, &refused) && refused.Kind == schema.Unsupported:
		return &apiError{http.StatusInternalServerError, refused.Code, coded(refused.Code, coded(refused.Code, refused.Message))}
	case errors.As(err, &refused) && refused.Kind == schema.Conflict:
		return &apiError{http.StatusConflict, refused.Code, coded(refused.Code, refused.Message)}
	case errors.As(err, &refused):
		return &apiError{http.StatusBadRequest, refused.Code, coded(refused.Code, refused.Message)}
	case errors.As(err, &noDp):
		return &apiError{status: http.StatusNotFound, message: noDp.Error()}
	}
	return err
}

func coded(code, message string) string {
	if code == "" || strings.HasPrefix(message, "["+code+"] ["+code+"]") {
		return message
	}
	return "[" + code + "] " + message
}

// handleError turns any error into a response.
func (a *Admin) handleError(err error, c echo.Context) {
	if c.Response().Committed {
		return
	}
	w, r := c.Response(), c.Request()
	var (
		api   *apiError
		text  *rejection
		empty emptyError
		he    *echo.HTTPError
	)
	switch {
	case errors.As(err, &api):
		a.respondError(w, r, api)
	case errors.As(err, &text):
		a.respondText(w, r, text.status, text.text)
	case errors.As(err, &empty):
		a.respondEmpty(w, r, int(empty))
	case errors.As(err, &he) && he.Code == http.StatusMethodNotAllowed:
		w.Header().Set("Allow", allowed(c))
		a.respondEmpty(w, r, he.Code)
	case errors.As(err, &he):
		a.respondEmpty(w, r, he.Code)
	case errors.Is(err, context.Canceled) && r.Context().Err() != nil:
		a.respondEmpty(w, r, http.StatusServiceUnavailable) // the client is gone
	default:
		a.deps.Log.Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		a.respondError(w, r, &apiError{status: http.StatusInternalServerError, message: err.Error()})
	}
}

func (a *Admin) respondError(w http.ResponseWriter, r *http.Request, e *apiError) {
	b := errorBody{Message: e.message}
	if e.code != "" {
		b.Code = &e.code
	}
	a.respond(w, r, e.status, b)
}

// allowed lists the methods of a path as the interface prints them: sorted, without spaces, without OPTIONS.
func allowed(c echo.Context) string {
	list, _ := c.Get(echo.ContextKeyHeaderAllow).(string)
	var methods []string
	for m := range strings.SplitSeq(list, ",") {
		if m = strings.TrimSpace(m); m != "" && m != http.MethodOptions {
			methods = append(methods, m)
		}
	}
	sort.Strings(methods)
	return strings.Join(methods, ",")
}
