package schema

import "strings"

// InputError says why a body is refused. Its text is the one that callers of the ingress know.
type InputError struct{ Reason string }

func (e *InputError) Error() string { return "input validation error: " + e.Reason }

// CheckInput checks a request's body against the handler's rules. present says whether the request had a content-type header
// at all. The content itself is not validated against the JSON schema. The error is an *InputError.
func (h *Handler) CheckInput(contentType string, present, emptyBody bool) error {
	r := &h.Input
	switch {
	case r.Any, !r.Required && !present && emptyBody:
		return nil
	case r.ContentType == "" && r.Required:
		return &InputError{"Bad configuration of the input validation rules"}
	case r.ContentType == "":
		if present || !emptyBody {
			what := "None"
			if present {
				what = `Some("` + contentType + `")`
			}
			return &InputError{"Expected body and content-type to be empty, but wasn't with content-type '" + what + "'"}
		}
		return nil
	case !present:
		return &InputError{"Empty content-type"}
	}
	ct, _, _ := strings.Cut(contentType, ";")
	ct = strings.TrimSpace(ct)
	if !matchContentType(r.ContentType, ct) {
		return &InputError{"Content-type '" + contentType + "' does not match '" + r.ContentType + "'"}
	}
	if emptyBody && len(r.JSONSchema) > 0 {
		return &InputError{"Empty body not allowed"}
	}
	return nil
}

// matchContentType reports whether a content type without parameters fits a pattern type/sub, type/* or */*.
func matchContentType(pattern, ct string) bool {
	if pattern == ct || pattern == "*/*" {
		return true
	}
	pt, ps, _ := strings.Cut(pattern, "/")
	t, sub, ok := strings.Cut(ct, "/")
	return ok && strings.EqualFold(pt, t) && (ps == "*" || strings.EqualFold(ps, sub))
}
