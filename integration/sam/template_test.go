package sam

import (
	"bytes"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

const templateFile = "../../sam/template.yaml"

func template(t *testing.T) string {
	t.Helper()
	b, err := os.ReadFile(templateFile)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// TestTemplate: every resource type, property, reference and policy is one that AWS documents.
func TestTemplate(t *testing.T) {
	tmpl, err := Parse([]byte(template(t)))
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range tmpl.Check() {
		t.Error(p)
	}
	if n := len(tmpl.section("Resources")); n != 5 {
		t.Errorf("%d resources were looked at", n)
	}
}

// TestCheckFinds: each kind of mistake is found, so the test above means something.
func TestCheckFinds(t *testing.T) {
	for _, x := range []struct{ old, new, says string }{
		{"MemorySize: 256", "MemorySizes: 256", "Globals.Function.MemorySizes: is no property that can be global"},
		{"MemorySize: 256", "MemorySize: 64", "out of range"},
		{"MemorySize: 256", "MemorySize: many", "must be a integer"},
		{"MemorySize: 256", "CodeUri2: x", "CodeUri2"},
		{"Runtime: provided.al2023", "Runtime: go1.x", "Runtime: is go1.x: must be one of"},
		{"    Runtime: provided.al2023\n", "", "Runtime is missing, here and in Globals"},
		{"      CodeUri: build/package/greeter/\n", "", "Resources.Greeter: CodeUri is missing"},
		{"LogFormat: JSON", "LogFormat: json", "must be one of Text, JSON"},
		{"AutoPublishAliasAllProperties: true", "AutoPublishAliasAllProperties: yes please", "must be a boolean"},
		{"Type: AWS::Logs::LogGroup", "Type: AWS::Logs::Group", "type AWS::Logs::Group is not in the specification"},
		{"      RetentionInDays: !Ref LogDays", "      RetentionInDays: 15", "is 15: must be one of"},
		{"      RetentionInDays: !Ref LogDays", "      RetentionInDays: 14", "LogDays: is not used"},
		{"!Ref LogDays", "!Ref LogWeeks", "there is nothing called LogWeeks"},
		{"!GetAtt InvokeRole.Arn", "!GetAtt InvokeRole.Name", "there is no attribute"},
		{"${Greeter.Arn}:*", "${Greeter.Name}:*", "there is nothing called Greeter.Name"},
		{"!Ref Greeter.Version", "!Ref Greeter.Release", "there is nothing called Greeter.Release"},
		{"Condition: HasCluster", "Condition: HasNoCluster", "there is no condition HasNoCluster"},
		{"- HasExternalId", "- HasNoExternalId", "there is no condition HasNoExternalId"},
		{"Action: sts:AssumeRole", "Action: AssumeRole", "is not service:Name"},
		{"Effect: Allow", "Effect: Permit", "Effect is Permit"},
		{`Version: "2012-10-17"`, "Version: 2012-10-17", "must be \"2012-10-17\", in quotes"},
		{"        - PolicyName: invoke-published-versions\n          PolicyDocument:", "        - PolicyDocument:", "PolicyName is missing"},
		{"    DeletionPolicy: Delete", "    DeletionPolicy: Drop", "DeletionPolicy is Drop"},
		{"    DeletionPolicy: Delete", "    DeletePolicy: Delete", "DeletePolicy is not known"},
		{"Outputs:", "Output:", "Output: is no section"},
		{"    Default: arm64", "    Default: arm", "is not among the allowed values"},
		{`    Default: ""`, "    Default: role", "does not match the pattern"},
		{"Transform: AWS::Serverless-2016-10-31", "Transform: AWS::Serverless", "Transform"},
		{"!If", "!When", "there is no function !When"},
		{"MemorySize: 256", "Handler: x", "key Handler is there twice"},
	} {
		text := template(t)
		if !strings.Contains(text, x.old) {
			t.Errorf("the template has no %q to change", x.old)
			continue
		}
		tmpl, err := Parse([]byte(strings.Replace(text, x.old, x.new, 1)))
		var problems []string
		if err != nil {
			problems = []string{err.Error()}
		} else {
			problems = tmpl.Check()
		}
		if !slices.ContainsFunc(problems, func(p string) bool { return strings.Contains(p, x.says) }) {
			t.Errorf("%q instead of %q: found %q, want %q", x.new, x.old, problems, x.says)
		}
	}
}

// TestInvokeRole: the role lets one cluster call published versions, and nothing else.
func TestInvokeRole(t *testing.T) {
	tmpl, err := Parse([]byte(template(t)))
	if err != nil {
		t.Fatal(err)
	}
	role := tmpl.section("Resources")["InvokeRole"].(map[string]any)["Properties"].(map[string]any)
	trust := list(role["AssumeRolePolicyDocument"].(map[string]any)["Statement"])
	if len(trust) != 1 {
		t.Fatalf("trust %v", trust)
	}
	who := trust[0].(map[string]any)
	if p := who["Principal"].(map[string]any); len(p) != 1 || p["AWS"].(map[string]any)["Ref"] != "ClusterRoleArn" {
		t.Errorf("principal %v", p)
	}
	if who["Condition"] == nil {
		t.Error("the external id is not asked for")
	}
	for _, p := range role["Policies"].([]any) {
		for _, s := range list(p.(map[string]any)["PolicyDocument"].(map[string]any)["Statement"]) {
			s := s.(map[string]any)
			if s["Action"] != "lambda:InvokeFunction" {
				t.Errorf("action %v", s["Action"])
			}
			for _, r := range list(s["Resource"]) {
				if text, _ := r.(map[string]any)["Fn::Sub"].(string); !strings.HasSuffix(text, ".Arn}:*") {
					t.Errorf("resource %v is not qualified", r)
				}
			}
		}
	}
}

// TestCfnLint asks cfn-lint, which knows all of CloudFormation, where it is installed (make -C sam lint installs it).
func TestCfnLint(t *testing.T) {
	t.Parallel()
	path, err := exec.LookPath("cfn-lint")
	if err != nil {
		if path, err = exec.LookPath("../../sam/build/venv/bin/cfn-lint"); err != nil {
			t.Skip("cfn-lint is not installed; make -C sam lint installs and runs it where Python packages can be had")
		}
	}
	cmd := exec.Command(path, templateFile)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		t.Errorf("cfn-lint: %v\n%s", err, &out)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("Resources:\n  A: {Type: AWS::IAM::Role, Properties: {Policies: !If [C, [], !Ref AWS::NoValue]}}\n"))
	f.Add([]byte("a: &b [*b]"))
	f.Add([]byte("!Sub"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if tmpl, err := Parse(data); err == nil {
			tmpl.Check() // must not panic
		}
	})
}
