// Package sam keeps the samples of the directory sam honest: it checks the template against what AWS documents for the
// resource types in it, builds the functions as their Makefile says, and runs them end to end, registered by ARN, behind an
// emulation of Lambda.
//
// The documented properties are in spec.json, written by hand for the types that the template uses. A type that is not in
// there cannot be judged and is refused.
package sam

import (
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v4"
)

// resourceType is what is documented about a type of resource.
type resourceType struct {
	Documentation string
	// Attributes are those of Fn::GetAtt; Generated are resources that SAM makes and that Ref reaches as Name.Generated.
	Attributes, Generated []string
	Properties            map[string]*property
	// Together are properties of which all are needed, Globals included.
	Together [][]string
}

// property is what is documented about a property.
type property struct {
	Type       string // any, string, integer, boolean, list, object or policy
	Required   bool
	Global     bool // may stand in Globals
	Enum       []string
	Min, Max   *int
	Of         *property            // of the elements of a list
	Properties map[string]*property // of an object; nil: not looked into
}

//go:embed spec.json
var specJSON []byte

func loadSpec() (map[string]*resourceType, error) {
	var spec map[string]*resourceType
	if err := json.Unmarshal(specJSON, &spec); err != nil {
		return nil, fmt.Errorf("read the specification: %w", err)
	}
	return spec, nil
}

// Template is a parsed template, its intrinsic functions in their long form ({"Fn::Sub": …}, {"Ref": …}).
type Template struct {
	root map[string]any
	spec map[string]*resourceType
}

// Parse reads a template in YAML.
func Parse(data []byte) (*Template, error) {
	spec, err := loadSpec()
	if err != nil {
		return nil, err
	}
	var doc yaml.Node
	if err := yaml.Unmarshal(data, &doc); err != nil {
		return nil, fmt.Errorf("parse the template: %w", err)
	}
	if len(doc.Content) != 1 {
		return nil, errors.New("parse the template: it is empty")
	}
	v, err := value(doc.Content[0])
	if err != nil {
		return nil, err
	}
	root, ok := v.(map[string]any)
	if !ok {
		return nil, errors.New("parse the template: it is no map")
	}
	return &Template{root: root, spec: spec}, nil
}

// value turns a node into maps, lists and scalars.
func value(n *yaml.Node) (any, error) {
	if name, ok := strings.CutPrefix(n.Tag, "!"); ok && !strings.HasPrefix(n.Tag, "!!") {
		return intrinsic(name, n)
	}
	switch n.Kind {
	case yaml.MappingNode:
		m := map[string]any{}
		for i := 0; i < len(n.Content); i += 2 {
			key := n.Content[i].Value
			if _, twice := m[key]; twice {
				return nil, fmt.Errorf("line %d: key %s is there twice", n.Content[i].Line, key)
			}
			v, err := value(n.Content[i+1])
			if err != nil {
				return nil, err
			}
			m[key] = v
		}
		return m, nil
	case yaml.SequenceNode:
		l := []any{}
		for _, c := range n.Content {
			v, err := value(c)
			if err != nil {
				return nil, err
			}
			l = append(l, v)
		}
		return l, nil
	case yaml.ScalarNode:
		var v any
		if err := n.Decode(&v); err != nil {
			return nil, fmt.Errorf("line %d: %w", n.Line, err)
		}
		return v, nil
	}
	return nil, fmt.Errorf("line %d: anchors and aliases are not for templates", n.Line)
}

// shortForms are the functions that have a tag.
var shortForms = []string{"Ref", "Condition", "Sub", "GetAtt", "If", "Not", "Equals", "And", "Or", "Join", "Select", "Split", "FindInMap",
	"ImportValue", "Base64", "Cidr", "GetAZs"}

func intrinsic(name string, n *yaml.Node) (any, error) {
	if !slices.Contains(shortForms, name) {
		return nil, fmt.Errorf("line %d: there is no function !%s", n.Line, name)
	}
	plain := *n
	plain.Tag = ""
	if n.Kind == yaml.ScalarNode {
		plain.Tag = "!!str"
	}
	arg, err := value(&plain)
	if err != nil {
		return nil, err
	}
	if s, ok := arg.(string); ok && name == "GetAtt" {
		resource, attribute, _ := strings.Cut(s, ".")
		arg = []any{resource, attribute}
	}
	if name != "Ref" && name != "Condition" {
		name = "Fn::" + name
	}
	return map[string]any{name: arg}, nil
}

// function is the name and argument of a function, "" for anything else.
func function(v any) (string, any) {
	m, ok := v.(map[string]any)
	if !ok || len(m) != 1 {
		return "", nil
	}
	for name, arg := range m {
		if name == "Ref" || strings.HasPrefix(name, "Fn::") {
			return name, arg
		}
	}
	return "", nil
}

// checker collects what is wrong with a template.
type checker struct {
	*Template
	params, conditions, resources map[string]any
	used                          map[string]bool // parameters and conditions that something refers to
	problems                      []string
}

func (c *checker) bad(where, format string, args ...any) {
	c.problems = append(c.problems, where+": "+fmt.Sprintf(format, args...))
}

// sections are those of a SAM template, and whether they are maps of named things.
var sections = map[string]bool{"AWSTemplateFormatVersion": false, "Transform": false, "Description": false, "Metadata": true, "Parameters": true,
	"Mappings": true, "Conditions": true, "Globals": true, "Resources": true, "Outputs": true, "Rules": true}

// Check tells all that is wrong, sorted; nothing for a template that CloudFormation would take.
func (t *Template) Check() []string {
	c := &checker{Template: t, used: map[string]bool{}}
	for name, v := range t.root {
		isMap, known := sections[name]
		_, ok := v.(map[string]any)
		if !known || isMap != ok {
			c.bad(name, "is no section of a template, or has the wrong shape")
		}
	}
	if t.root["AWSTemplateFormatVersion"] != "2010-09-09" || t.root["Transform"] != "AWS::Serverless-2016-10-31" {
		c.bad("template", "AWSTemplateFormatVersion must be \"2010-09-09\" and Transform AWS::Serverless-2016-10-31")
	}
	c.params, c.conditions, c.resources = t.section("Parameters"), t.section("Conditions"), t.section("Resources")
	if len(c.resources) == 0 {
		c.bad("Resources", "is empty")
	}
	for name, p := range c.params {
		c.parameter("Parameters."+name, p)
	}
	for name, v := range c.conditions {
		c.references("Conditions."+name, v)
	}
	c.globals()
	for name, r := range c.resources {
		c.resource(name, r)
	}
	for name, o := range t.section("Outputs") {
		c.output("Outputs."+name, o)
	}
	for _, names := range []map[string]any{c.params, c.conditions} {
		for name := range names {
			if !c.used[name] {
				c.bad(name, "is not used")
			}
		}
	}
	slices.Sort(c.problems)
	return c.problems
}

func (t *Template) section(name string) map[string]any {
	m, _ := t.root[name].(map[string]any)
	return m
}

var name = regexp.MustCompile(`^[A-Za-z0-9]{1,255}$`)

func (c *checker) parameter(where string, v any) {
	p, ok := v.(map[string]any)
	if !ok {
		c.bad(where, "is no map")
		return
	}
	c.keys(where, p, []string{"Type"}, []string{"Default", "Description", "AllowedValues", "AllowedPattern", "ConstraintDescription", "MinLength",
		"MaxLength", "MinValue", "MaxValue", "NoEcho"})
	if !slices.Contains([]any{"String", "Number", "CommaDelimitedList", "List<Number>"}, p["Type"]) {
		c.bad(where, "has the type %v, which this check does not know", p["Type"])
	}
	def, has := p["Default"]
	if !has {
		return
	}
	text := fmt.Sprint(def)
	if allowed, ok := p["AllowedValues"].([]any); ok && !slices.ContainsFunc(allowed, func(a any) bool { return fmt.Sprint(a) == text }) {
		c.bad(where, "default %q is not among the allowed values", text)
	}
	if pattern, ok := p["AllowedPattern"].(string); ok {
		re, err := regexp.Compile("^(?:" + pattern + ")$") // the whole value must match
		if err != nil {
			c.bad(where, "pattern: %v", err)
		} else if !re.MatchString(text) {
			c.bad(where, "default %q does not match the pattern", text)
		}
	}
}

// keys checks the keys of a map.
func (c *checker) keys(where string, m map[string]any, required, optional []string) {
	for k := range m {
		if !slices.Contains(required, k) && !slices.Contains(optional, k) {
			c.bad(where, "%s is not known", k)
		}
	}
	for _, k := range required {
		if _, ok := m[k]; !ok {
			c.bad(where, "%s is missing", k)
		}
	}
}

func (c *checker) globals() {
	for kind, v := range c.section("Globals") {
		props, ok := v.(map[string]any)
		spec := c.spec["AWS::Serverless::"+kind]
		if !ok || spec == nil {
			c.bad("Globals."+kind, "is not known")
			continue
		}
		for name, v := range props {
			where := "Globals." + kind + "." + name
			if p := spec.Properties[name]; p == nil || !p.Global {
				c.bad(where, "is no property that can be global")
			} else {
				c.property(where, p, v)
			}
		}
	}
}

func (c *checker) resource(id string, v any) {
	where := "Resources." + id
	r, ok := v.(map[string]any)
	if !ok {
		c.bad(where, "is no map")
		return
	}
	if !name.MatchString(id) {
		c.bad(where, "the name must have letters and digits only")
	}
	c.keys(where, r, []string{"Type"}, []string{"Properties", "Condition", "DependsOn", "DeletionPolicy", "UpdateReplacePolicy", "Metadata"})
	c.condition(where, r)
	for _, k := range []string{"DeletionPolicy", "UpdateReplacePolicy"} {
		if v, ok := r[k]; ok && !slices.Contains([]any{"Delete", "Retain", "Snapshot"}, v) {
			c.bad(where, "%s is %v", k, v)
		}
	}
	kind := fmt.Sprint(r["Type"])
	spec := c.spec[kind]
	if spec == nil {
		c.bad(where, "type %s is not in the specification", kind)
		return
	}
	props, _ := r["Properties"].(map[string]any)
	c.object(where, spec.Properties, props)
	global, _ := c.section("Globals")[kind[strings.LastIndex(kind, ":")+1:]].(map[string]any)
	for _, group := range spec.Together {
		for _, p := range group {
			if props[p] == nil && (global[p] == nil || !strings.HasPrefix(kind, "AWS::Serverless::")) {
				c.bad(where, "%s is missing, here and in Globals", p)
			}
		}
	}
}

// condition checks the condition that a resource or output may have.
func (c *checker) condition(where string, m map[string]any) {
	if v, ok := m["Condition"]; ok {
		c.knownCondition(where, v)
	}
}

func (c *checker) knownCondition(where string, v any) {
	s, _ := v.(string)
	if _, ok := c.conditions[s]; !ok {
		c.bad(where, "there is no condition %v", v)
	}
	c.used[s] = true
}

func (c *checker) object(where string, spec map[string]*property, props map[string]any) {
	for name, v := range props {
		p := spec[name]
		if p == nil {
			c.bad(where+"."+name, "is no property of this type")
			continue
		}
		c.property(where+"."+name, p, v)
	}
	for name, p := range spec {
		if _, ok := props[name]; p.Required && !ok {
			c.bad(where, "%s is missing", name)
		}
	}
}

// property checks a value. Of what a function gives only the references can be checked.
func (c *checker) property(where string, p *property, v any) {
	switch name, arg := function(v); name {
	case "":
	case "Fn::If":
		c.branches(where, p, arg)
		return
	default:
		c.references(where, v)
		return
	}
	switch p.Type {
	case "any":
		c.references(where, v)
	case "string", "integer", "boolean":
		c.scalar(where, p, v)
	case "list":
		l, ok := v.([]any)
		if !ok {
			c.bad(where, "must be a list")
		}
		for i, e := range l {
			of := p.Of
			if of == nil {
				of = &property{Type: "any"}
			}
			c.property(fmt.Sprintf("%s[%d]", where, i), of, e)
		}
	case "object":
		m, ok := v.(map[string]any)
		switch {
		case !ok:
			c.bad(where, "must be a map")
		case p.Properties == nil:
			c.references(where, v)
		default:
			c.object(where, p.Properties, m)
		}
	case "policy":
		c.policy(where, v)
	default:
		c.bad(where, "the specification has a type %q", p.Type)
	}
}

// branches checks both values that an If can have.
func (c *checker) branches(where string, p *property, arg any) {
	l, ok := arg.([]any)
	if !ok || len(l) != 3 {
		c.bad(where, "If needs a condition and two values")
		return
	}
	c.knownCondition(where, l[0])
	for _, v := range l[1:] {
		if _, arg := function(v); arg != "AWS::NoValue" {
			c.property(where, p, v)
		}
	}
}

func (c *checker) scalar(where string, p *property, v any) {
	n, isInt := v.(int)
	_, isBool := v.(bool)
	_, isString := v.(string)
	switch {
	case p.Type == "string" && !isString, p.Type == "integer" && !isInt, p.Type == "boolean" && !isBool:
		c.bad(where, "is %v: must be a %s", v, p.Type)
	case len(p.Enum) > 0 && !slices.Contains(p.Enum, fmt.Sprint(v)):
		c.bad(where, "is %v: must be one of %s", v, strings.Join(p.Enum, ", "))
	case isInt && (p.Min != nil && n < *p.Min || p.Max != nil && n > *p.Max):
		c.bad(where, "is %d: out of range", n)
	}
}

func (c *checker) output(where string, v any) {
	o, ok := v.(map[string]any)
	if !ok {
		c.bad(where, "is no map")
		return
	}
	c.keys(where, o, []string{"Value"}, []string{"Description", "Condition", "Export"})
	c.condition(where, o)
	c.references(where, o["Value"])
}

var action = regexp.MustCompile(`^[a-z0-9-]+:[A-Za-z*]+$`)

// policy checks an IAM policy document.
func (c *checker) policy(where string, v any) {
	doc, ok := v.(map[string]any)
	if !ok {
		c.bad(where, "must be a policy document")
		return
	}
	c.keys(where, doc, []string{"Version", "Statement"}, []string{"Id"})
	if doc["Version"] != "2012-10-17" {
		c.bad(where, "Version is %v: must be \"2012-10-17\", in quotes", doc["Version"])
	}
	for i, s := range list(doc["Statement"]) {
		c.statement(where+".Statement["+strconv.Itoa(i)+"]", s)
	}
}

func list(v any) []any {
	if l, ok := v.([]any); ok {
		return l
	}
	return []any{v}
}

func (c *checker) statement(where string, v any) {
	s, ok := v.(map[string]any)
	if !ok {
		c.bad(where, "must be a map")
		return
	}
	c.keys(where, s, []string{"Effect"}, []string{"Sid", "Principal", "NotPrincipal", "Action", "NotAction", "Resource", "NotResource", "Condition"})
	if s["Effect"] != "Allow" && s["Effect"] != "Deny" {
		c.bad(where, "Effect is %v", s["Effect"])
	}
	for _, a := range list(s["Action"]) {
		if text, ok := a.(string); !ok || !action.MatchString(text) {
			c.bad(where, "action %v is not service:Name", a)
		}
	}
	if (s["Principal"] == nil) == (s["Resource"] == nil) {
		c.bad(where, "needs either a principal (who may assume a role) or a resource (what may be used)")
	}
	for _, k := range []string{"Principal", "Resource", "Condition"} {
		c.references(where+"."+k, s[k])
	}
}

// references checks all functions inside a value.
func (c *checker) references(where string, v any) {
	switch name, arg := function(v); name {
	case "Ref":
		c.ref(where, arg)
		return
	case "Fn::GetAtt":
		c.getAtt(where, arg)
		return
	case "Fn::Sub":
		c.sub(where, arg)
		return
	case "Fn::If":
		if l := list(arg); len(l) == 3 {
			c.knownCondition(where, l[0])
			c.references(where, l[1:])
			return
		}
		c.bad(where, "If needs a condition and two values")
		return
	}
	switch v := v.(type) {
	case map[string]any:
		if cond, ok := v["Condition"]; ok && len(v) == 1 {
			c.knownCondition(where, cond)
			return
		}
		for k, e := range v {
			c.references(where+"."+k, e)
		}
	case []any:
		for _, e := range v {
			c.references(where, e)
		}
	}
}

var pseudo = []string{"AWS::AccountId", "AWS::NoValue", "AWS::NotificationARNs", "AWS::Partition", "AWS::Region", "AWS::StackId", "AWS::StackName", "AWS::URLSuffix"}

func (c *checker) ref(where string, arg any) {
	target, _ := arg.(string)
	if _, ok := c.params[target]; ok {
		c.used[target] = true
		return
	}
	id, generated, _ := strings.Cut(target, ".")
	spec := c.typeOf(id)
	if slices.Contains(pseudo, target) || spec != nil && (generated == "" || slices.Contains(spec.Generated, generated)) {
		return
	}
	c.bad(where, "there is nothing called %v to refer to", arg)
}

func (c *checker) typeOf(id string) *resourceType {
	r, _ := c.resources[id].(map[string]any)
	kind, _ := r["Type"].(string)
	return c.spec[kind]
}

func (c *checker) getAtt(where string, arg any) {
	l := list(arg)
	if len(l) == 2 {
		id, _ := l[0].(string)
		attribute, _ := l[1].(string)
		if spec := c.typeOf(id); spec != nil && slices.Contains(spec.Attributes, attribute) {
			return
		}
	}
	c.bad(where, "there is no attribute %v", arg)
}

var variable = regexp.MustCompile(`\$\{([^!}][^}]*)\}`)

func (c *checker) sub(where string, arg any) {
	local := map[string]any{}
	l := list(arg)
	if len(l) == 2 {
		local, _ = l[1].(map[string]any)
		c.references(where, l[1])
	}
	text, ok := l[0].(string)
	if !ok {
		c.bad(where, "Sub needs a text")
	}
	for _, m := range variable.FindAllStringSubmatch(text, -1) {
		target := m[1]
		if _, ok := local[target]; ok {
			continue
		}
		id, attribute, dotted := strings.Cut(target, ".")
		if spec := c.typeOf(id); dotted && spec != nil && slices.Contains(spec.Attributes, attribute) {
			continue
		}
		c.ref(where, target)
	}
}
