package schema

import (
	"encoding/json"
	"maps"
	"strconv"
)

type object = map[string]any

func ref(path string) object { return object{"$ref": "#/components/" + path} }

func jsonContent(schema, example any) object {
	return object{"application/json": object{"schema": schema, "example": example}}
}

// OpenAPI is the OpenAPI 3.1 document of the service for its callers: the public handlers as they are reached through the
// ingress at ingressURL. The result is made anew for each call.
func (v *ServiceRevision) OpenAPI(ingressURL string) map[string]any {
	info := object{"title": v.Name, "version": strconv.FormatUint(uint64(v.Revision), 10)}
	if v.Documentation != nil {
		info["description"] = *v.Documentation
	}
	if len(v.Metadata) > 0 {
		info["x-restate-extensions"] = maps.Clone(v.Metadata)
	}
	paths, schemas := object{}, object{"RestateError": errorSchema()}
	for i := range v.Handlers {
		if h := &v.Handlers[i]; h.Options.Public {
			v.describeHandler(h, paths, schemas)
		}
	}
	if v.Type == Workflow {
		key := []object{ref("parameters/key")}
		base := "/restate/workflow/" + v.Name + "/{key}/"
		paths[base+"attach"] = object{"get": waiting(v.Name+"Attach", "Attach to the workflow "+v.Name, key, object{"description": "Output of the workflow"}, false)}
		paths[base+"output"] = object{"get": waiting(v.Name+"Output", "Get the output of the workflow "+v.Name, key, object{"description": "Output of the workflow"}, false)}
	}
	return object{
		"openapi": "3.1.0", "info": info, "servers": []object{{"url": ingressURL}}, "paths": paths,
		"components": object{"parameters": parameters(), "responses": responses(), "schemas": schemas},
	}
}

func (v *ServiceRevision) describeHandler(h *Handler, paths, schemas object) {
	suffix := v.Name + "/" + h.Name
	params := []object{}
	if v.Type.Keyed() {
		suffix = v.Name + "/{key}/" + h.Name
		params = append(params, ref("parameters/key"))
	}
	keyParams := append([]object{}, params...)
	if v.Type != Workflow {
		params = append(params, ref("parameters/idempotencyKeyHeader"))
	}
	body := inputBody(h, schemas)
	output := outputResponse(h, schemas)

	call := operation(h, h.Name, "Call", "Call "+v.Name+" handler "+h.Name+" and wait for its result", params, body)
	call["responses"] = object{"200": output, "default": ref("responses/GenericError")}
	paths["/restate/call/"+suffix] = object{"post": call}

	send := operation(h, h.Name+"Send", "Send", "Send to "+v.Name+" handler "+h.Name+" without waiting for its result", append(append([]object{}, params...), ref("parameters/delay")), body)
	send["responses"] = object{"202": ref("responses/Send"), "default": ref("responses/GenericError")}
	paths["/restate/send/"+suffix] = object{"post": send}

	if v.Type == Workflow {
		return
	}
	byKey := append(keyParams, ref("parameters/idempotencyKeyPath"))
	base := "/restate/invocation/" + suffix + "/{idempotencyKey}/"
	paths[base+"attach"] = object{"get": waiting(h.Name+"Attach", "Attach to an invocation of "+h.Name+" by its idempotency key", byKey, output, true)}
	paths[base+"output"] = object{"get": waiting(h.Name+"Output", "Get the output of an invocation of "+h.Name+" by its idempotency key", byKey, output, true)}
}

func operation(h *Handler, id, tag, description string, params []object, body object) object {
	op := object{"operationId": id, "summary": h.Name, "description": description, "parameters": params}
	if tag == "Send" {
		op["tags"] = []string{tag}
	}
	if h.Documentation != nil {
		op["description"] = *h.Documentation
	}
	if len(h.Metadata) > 0 {
		op["x-restate-extensions"] = maps.Clone(h.Metadata)
	}
	if body != nil {
		op["requestBody"] = body
	}
	return op
}

// waiting is an operation that reads the result of an invocation.
func waiting(id, summary string, params []object, output object, deprecated bool) object {
	op := object{
		"operationId": id, "summary": summary, "parameters": params,
		"responses": object{
			"200": output, "404": ref("responses/InvocationNotFoundError"), "470": ref("responses/InvocationNotReadyError"),
			"default": ref("responses/GenericError"),
		},
	}
	if deprecated {
		op["deprecated"] = true
	}
	return op
}

// inputBody describes what a handler accepts; nil when it accepts nothing.
func inputBody(h *Handler, schemas object) object {
	r := &h.Input
	contentType := r.ContentType
	if r.Any {
		contentType = "*/*"
	}
	if contentType == "" {
		return nil
	}
	return object{"required": r.Required, "content": content(contentType, r.JSONSchema, h.Name+"Request", schemas)}
}

func outputResponse(h *Handler, schemas object) object {
	r := &h.Output
	out := object{"description": "Output of the handler"}
	if r.ContentType != "" {
		out["content"] = content(r.ContentType, r.JSONSchema, h.Name+"Response", schemas)
	}
	return out
}

// content is a body of a content type, with its JSON schema among the components when it has one.
func content(contentType string, raw json.RawMessage, name string, schemas object) object {
	media := object{}
	if len(raw) > 0 {
		schemas[name] = relocate(raw, name)
		media["schema"] = ref("schemas/" + name)
	}
	return object{contentType: media}
}

// relocate rewrites the references of a schema into itself, which it has as a document of its own, to its place among the
// components.
func relocate(raw json.RawMessage, name string) any {
	var v any
	if err := json.Unmarshal(raw, &v); err != nil {
		return object{} // registration has checked that it is JSON
	}
	root := "#/components/schemas/" + name
	var walk func(any)
	walk = func(v any) {
		switch v := v.(type) {
		case []any:
			for _, e := range v {
				walk(e)
			}
		case object:
			// The order cannot show: each entry is rewritten on its own.
			for k, e := range v {
				s, isString := e.(string)
				switch {
				case k == "$ref" && isString && s == "#":
					v[k] = root
				case k == "$ref" && isString && len(s) > 1 && s[:2] == "#/":
					v[k] = root + s[1:]
				case k == "const" || k == "enum" || k == "default" || k == "examples":
				default:
					walk(e)
				}
			}
		}
	}
	walk(v)
	return v
}

func parameters() object {
	param := func(name, in, description, example string, required bool) object {
		p := object{"name": name, "in": in, "required": required, "schema": object{"type": "string"}}
		if description != "" {
			p["description"] = description
		}
		if example != "" {
			p["example"] = example
		}
		return p
	}
	return object{
		"delay":                param("delay", "query", "How long to wait before the handler runs: 10s, 1h 30m, or ISO 8601.", "10s", false),
		"idempotencyKeyHeader": param("idempotency-key", "header", "Requests with the same key run the handler once.", "", false),
		"idempotencyKeyPath":   param("idempotencyKey", "path", "Idempotency key of the original request.", "", true),
		"key":                  param("key", "path", "", "", true),
	}
}

func responses() object {
	schema := ref("schemas/RestateError")
	return object{
		"GenericError": object{"description": "Error response", "content": jsonContent(schema, object{"code": 500, "message": "Internal server error", "source": "invocation"})},
		"InvocationNotFoundError": object{"description": "Invocation not found",
			"content": jsonContent(schema, object{"code": 404, "message": "invocation not found", "source": "ingress"})},
		"InvocationNotReadyError": object{"description": "The invocation has not completed",
			"content": jsonContent(schema, object{"code": 470, "message": "the invocation exists but has not completed yet", "source": "ingress"})},
		"Send": object{"description": "The invocation is accepted", "content": jsonContent(object{
			"title": "RestateSendResponse", "type": "object", "additionalProperties": false, "required": []string{"invocationId", "status"},
			"properties": object{
				"invocationId":  object{"type": "string"},
				"status":        object{"type": "string", "enum": []string{"Accepted", "PreviouslyAccepted"}},
				"executionTime": object{"type": "string", "format": "date-time", "description": "When the handler will run, if delayed."},
			},
		}, object{"invocationId": "inv_1gdJBtdVEcM942bjcDmb1c1khoaJe11Hbz", "status": "Accepted"})},
	}
}

func errorSchema() object {
	return object{
		"title": "RestateError", "type": "object", "additionalProperties": false, "required": []string{"message", "source"},
		"description": "What callers get when the ingress refuses a request or a handler ends with a terminal error.",
		"properties": object{
			"code":    object{"type": "number", "title": "error code"},
			"message": object{"type": "string", "title": "error message"},
			"source": object{"type": "string", "enum": []string{"ingress", "invocation"},
				"description": "Who made the error; also in the header x-restate-error-source. The code of an invocation's error is the handler's."},
			"metadata":   object{"type": "object", "additionalProperties": object{"type": "string"}},
			"stacktrace": object{"type": "string"},
		},
	}
}
