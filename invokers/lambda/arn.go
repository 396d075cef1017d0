package lambda

import (
	"errors"
	"fmt"
	"strings"
)

// ARN is a qualified function ARN taken apart:
// arn:<partition>:lambda:<region>:<account>:function:<name>:<qualifier>.
type ARN struct {
	Partition, Region, Account, Name string
	// Qualifier is a version number, an alias or $LATEST; never empty.
	Qualifier string
}

var errUnqualified = errors.New("ARN has no version or alias: publish a version and append its number, because an invocation must find the code again that it began with ($LATEST changes with every deploy)")

// ParseARN reads a qualified function ARN. Whether $LATEST may be used is not its question.
func ParseARN(s string) (ARN, error) {
	p := strings.SplitN(s, ":", 8)
	switch {
	case len(p) < 7 || p[0] != "arn" || p[2] != "lambda" || p[5] != "function":
		return ARN{}, fmt.Errorf("%q is no Lambda function ARN (arn:aws:lambda:<region>:<account>:function:<name>:<version>)", s)
	case p[1] == "" || p[3] == "" || p[4] == "" || p[6] == "":
		return ARN{}, fmt.Errorf("Lambda function ARN %q has an empty part", s)
	case len(p) < 8 || p[7] == "":
		return ARN{}, fmt.Errorf("Lambda function ARN %q: %w", s, errUnqualified)
	case strings.Contains(p[7], ":"):
		return ARN{}, fmt.Errorf("Lambda function ARN %q has more parts than a function ARN", s)
	}
	return ARN{Partition: p[1], Region: p[3], Account: p[4], Name: p[6], Qualifier: p[7]}, nil
}

// String is the ARN as it was read.
func (a ARN) String() string { return a.unqualified() + ":" + a.Qualifier }

// unqualified names what versions have in common: concurrency is limited there.
func (a ARN) unqualified() string {
	return "arn:" + a.Partition + ":lambda:" + a.Region + ":" + a.Account + ":function:" + a.Name
}
