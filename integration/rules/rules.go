// Package rules holds the rules of this repository that a compiler does not know: who may import whom, which packages are
// pure, how packages are documented and named. Its tests apply them to the whole module, each with its reason.
//
// A rule that is in the way is changed here, with a new reason, and not gone around.
package rules

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// Module is the module's path.
const Module = "perdure"

// Package is one package of the module, parsed.
type Package struct {
	// Path is the import path without the module's name, such as nodes/ingress.
	Path  string
	Name  string
	Files []*File
}

// File is one parsed file of a package.
type File struct {
	Name      string // base name
	Test      bool
	Generated bool
	Syntax    *ast.File
}

// Violation says where a rule is broken and why the rule is there.
type Violation struct{ Where, What, Reason string }

func (v Violation) String() string { return v.Where + ": " + v.What + " (" + v.Reason + ")" }

// Tree is the module.
type Tree struct {
	Root     string
	Fset     *token.FileSet
	Packages []*Package
}

// Load parses all packages of the module that root is the directory of.
func Load(root string) (*Tree, error) {
	out, err := goCommand(root, "list", "-e", "-json=ImportPath,Name,Dir,GoFiles,IgnoredGoFiles,TestGoFiles,XTestGoFiles", "./...")
	if err != nil {
		return nil, err
	}
	t := &Tree{Root: root, Fset: token.NewFileSet()}
	dec := json.NewDecoder(bytes.NewReader(out))
	for {
		var p struct {
			ImportPath, Name, Dir                              string
			GoFiles, IgnoredGoFiles, TestGoFiles, XTestGoFiles []string
		}
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return t, nil
		} else if err != nil {
			return nil, fmt.Errorf("decode the list of packages: %w", err)
		}
		pkg := &Package{Path: strings.TrimPrefix(p.ImportPath, Module+"/"), Name: p.Name}
		for i, names := range [][]string{p.GoFiles, p.IgnoredGoFiles, p.TestGoFiles, p.XTestGoFiles} {
			for _, name := range names {
				f, err := t.parse(filepath.Join(p.Dir, name), nil)
				if err != nil {
					return nil, err
				}
				f.Test = i >= 2 || strings.HasSuffix(name, "_test.go")
				pkg.Files = append(pkg.Files, f)
			}
		}
		t.Packages = append(t.Packages, pkg)
	}
}

func (t *Tree) parse(file string, src any) (*File, error) {
	syntax, err := parser.ParseFile(t.Fset, file, src, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("parse: %w", err)
	}
	return &File{Name: filepath.Base(file), Generated: ast.IsGenerated(syntax), Syntax: syntax}, nil
}

func goCommand(dir string, args ...string) ([]byte, error) {
	cmd := exec.Command("go", args...)
	cmd.Dir = dir
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go %s: %w: %s", args[0], err, &stderr)
	}
	return out, nil
}

// where is the position of a node, with a path from the module's root.
func (t *Tree) where(n ast.Node) string {
	p := t.Fset.Position(n.Pos())
	if rel, err := filepath.Rel(t.Root, p.Filename); err == nil {
		p.Filename = rel
	}
	return p.Filename + ":" + strconv.Itoa(p.Line)
}

// within reports whether a path is a directory or lies below it.
func within(p, dir string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }

// imports calls fn with each import of the module's own packages.
func (p *Package) imports(fn func(f *File, spec *ast.ImportSpec, target string)) {
	for _, f := range p.Files {
		for _, spec := range f.Syntax.Imports {
			fn(f, spec, importPath(spec))
		}
	}
}

func importPath(spec *ast.ImportSpec) string {
	s, err := strconv.Unquote(spec.Path.Value)
	if err != nil {
		return spec.Path.Value // the parser has seen to it that this cannot be
	}
	return s
}

// layers from the lowest; each may import itself and those before it.
var layers = []struct{ dir, reason string }{
	{"sam", "samples are what users write: they know the published SDK and nothing of the server"},
	{"control", "control is the shared vocabulary: if it knew its users, everything would depend on everything"},
	{"invokers", "invokers know nothing of logs, partitions or stores, so that they can be tested against a scripted service alone"},
	{"nodes", "nodes compose what is below; they are composed by cmd"},
	{"cmd", "cmd is the program; nothing but the tests of whole programs can need it"},
	{"integration", "integration may see everything, so nothing may see it: the product must build without its tests"},
}

func layer(p string) int {
	return slices.IndexFunc(layers, func(l struct{ dir, reason string }) bool { return within(p, l.dir) })
}

// Directions checks that imports go down the layers only. Tests count too: a test that looks up is a dependency in hiding.
func (t *Tree) Directions() (out []Violation) {
	for _, p := range t.Packages {
		from := layer(p.Path)
		if from < 0 {
			out = append(out, Violation{p.Path, "is in none of the top folders", "the tree shows the architecture"})
			continue
		}
		p.imports(func(_ *File, spec *ast.ImportSpec, target string) {
			rest, own := strings.CutPrefix(target, Module+"/")
			if to := layer(rest); own && (to > from || to == layer("sam") && !within(p.Path, "sam")) {
				out = append(out, Violation{t.where(spec), p.Path + " imports " + rest, layers[min(from, to)].reason})
			}
		})
	}
	return out
}

// barriers are single imports that the layers allow and the architecture does not.
var barriers = []struct {
	from   string // these packages
	to     string // do not import this one
	except []string
	reason string
}{
	{"nodes", "nodes/node", []string{"nodes/node"}, "only cmd starts a whole node; roles that see it would see each other"},
	{"nodes/ingress", "nodes/partition", nil, "the ingress knows partitions by the interface that it declares, so it can be tested without a log"},
	{"nodes/ingress", "nodes/bifrost", nil, "the ingress asks leaders, it never writes to a log itself"},
	{"nodes/partition", "nodes/worker", nil, "a processor does not know what else runs on its node"},
	{"nodes/partition", "nodes/ingress", nil, "a processor answers whoever asked"},
	{"nodes/bifrost", "nodes/partition", nil, "the log does not know what its records mean"},
	{"nodes/loglet", "nodes/bifrost", nil, "a segment does not know of its chain"},
	{"nodes/logserver", "nodes/loglet", nil, "acceptance rules depend on messages only, or they could not be checked alone"},
	{"nodes/logserver", "nodes/logstore", nil, "acceptance rules are given their store, so that a simulation can crash it"},
	{"control/cluster", "control", nil, "the vocabulary imports nothing but the standard library"},
}

// Barriers checks the single forbidden imports. Tests are free here: they may put two neighbours together.
func (t *Tree) Barriers() (out []Violation) {
	for _, p := range t.Packages {
		p.imports(func(f *File, spec *ast.ImportSpec, target string) {
			rest, own := strings.CutPrefix(target, Module+"/")
			if !own || f.Test {
				return
			}
			for _, b := range barriers {
				excepted := slices.ContainsFunc(b.except, func(e string) bool { return within(p.Path, e) })
				if within(p.Path, b.from) && within(rest, b.to) && !excepted {
					out = append(out, Violation{t.where(spec), p.Path + " imports " + rest, b.reason})
				}
			}
		})
	}
	return out
}

// Pure lists the packages without clock, randomness, goroutine, lock, network, file system or dependence on the order of maps.
var Pure = []string{"control/cluster", "control/chain", "control/placement", "control/schema", "control/ident", "control/duration",
	"invokers/protocol", "nodes/partition/fsm", "nodes/partition/store/keyspace"}

const (
	pureReason  = "a pure package gives the same outcome for the same input: replicas agree, and a simulation can replay it"
	orderReason = pureReason + "; if the order cannot show, say why in a comment with the word order, or sorted, above the loop"
)

// impureImports are packages whose use makes a package impure, as a whole.
var impureImports = []string{"os", "net", "net/http", "sync", "sync/atomic", "math/rand", "math/rand/v2", "crypto/rand", "runtime", "io/fs",
	"syscall", "unsafe", "log", "log/slog", "context", "testing/synctest"}

// impureNames are functions of packages that are otherwise plain data and arithmetic.
var impureNames = map[string][]string{
	"time": {"Now", "Since", "Until", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker", "Sleep", "Local", "LoadLocation"},
	"maps": {"Keys", "Values", "All"},
}

// switches is constant false, and compiled away, in every build but the one in which the simulator plants bugs.
const switches = "control/mutant"

// pureFiles calls fn with the hand-written files of the pure packages, tests left out.
func (t *Tree) pureFiles(fn func(p *Package, f *File)) {
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if slices.Contains(Pure, p.Path) && !f.Test && !f.Generated {
				fn(p, f)
			}
		}
	}
}

// Purity checks imports, statements and calls of the pure packages.
func (t *Tree) Purity() (out []Violation) {
	t.pureFiles(func(_ *Package, f *File) {
		for _, spec := range f.Syntax.Imports {
			target := importPath(spec)
			rest, own := strings.CutPrefix(target, Module+"/")
			if slices.Contains(impureImports, target) || own && !slices.Contains(Pure, rest) && !strings.HasSuffix(rest, "pb") && rest != switches {
				out = append(out, Violation{t.where(spec), "imports " + target, pureReason})
			}
		}
		out = append(out, t.impureSyntax(f)...)
	})
	return out
}

func (t *Tree) impureSyntax(f *File) (out []Violation) {
	sorted := map[ast.Node]bool{} // arguments of slices.Sorted and its kin, whose order does not show
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		var what string
		switch n := n.(type) {
		case *ast.GoStmt:
			what = "starts a goroutine"
		case *ast.SelectStmt:
			what = "selects"
		case *ast.ChanType:
			what = "uses a channel"
		case *ast.CallExpr:
			if pkg, name := selector(n.Fun); pkg == "slices" && strings.HasPrefix(name, "Sorted") {
				for _, a := range n.Args {
					if call, ok := a.(*ast.CallExpr); ok {
						sorted[call.Fun] = true
					}
				}
			}
		case *ast.SelectorExpr:
			if pkg, name := selector(n); slices.Contains(impureNames[pkg], name) && !sorted[n] {
				what = "uses " + pkg + "." + name
			}
		}
		if what != "" {
			out = append(out, Violation{t.where(n), what, pureReason})
		}
		return true
	})
	return out
}

// selector splits pkg.Name; both are empty for anything else.
func selector(e ast.Expr) (pkg, name string) {
	s, ok := e.(*ast.SelectorExpr)
	if !ok {
		return "", ""
	}
	id, ok := s.X.(*ast.Ident)
	if !ok {
		return "", ""
	}
	return id.Name, s.Sel.Name
}

// MapOrder finds loops over maps in the pure packages that do not say why the order cannot show. It needs types, so the
// packages must compile.
func (t *Tree) MapOrder() ([]Violation, error) {
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}}={{.Export}}"}
	for _, p := range t.Packages {
		if slices.Contains(Pure, p.Path) {
			args = append(args, Module+"/"+p.Path)
		}
	}
	listed, err := goCommand(t.Root, args...)
	if err != nil {
		return nil, err
	}
	exports := map[string]string{}
	for line := range strings.Lines(string(listed)) {
		target, file, _ := strings.Cut(strings.TrimSpace(line), "=")
		exports[target] = file
	}
	imp := importer.ForCompiler(t.Fset, "gc", func(target string) (io.ReadCloser, error) { return os.Open(exports[target]) })
	var out []Violation
	for _, p := range t.Packages {
		if !slices.Contains(Pure, p.Path) {
			continue
		}
		found, err := t.mapLoops(p, imp)
		if err != nil {
			return nil, err
		}
		out = append(out, found...)
	}
	return out, nil
}

func (t *Tree) mapLoops(p *Package, imp types.Importer) ([]Violation, error) {
	var files []*ast.File
	for _, f := range p.Files {
		if !f.Test {
			files = append(files, f.Syntax)
		}
	}
	info := &types.Info{Types: map[ast.Expr]types.TypeAndValue{}}
	if _, err := (&types.Config{Importer: imp}).Check(Module+"/"+p.Path, t.Fset, files, info); err != nil {
		return nil, fmt.Errorf("check the types of %s: %w", p.Path, err)
	}
	var out []Violation
	for _, f := range p.Files {
		if f.Test || f.Generated {
			continue
		}
		justified, sorted := t.orderComments(f), sortedAfter(f)
		ast.Inspect(f.Syntax, func(n ast.Node) bool {
			r, ok := n.(*ast.RangeStmt)
			if !ok {
				return true
			}
			if _, isMap := info.TypeOf(r.X).Underlying().(*types.Map); isMap && r.Key != nil && !sorted[r] && !justified[t.Fset.Position(r.Pos()).Line] {
				out = append(out, Violation{t.where(r), "loops over a map", orderReason})
			}
			return true
		})
	}
	return out, nil
}

// sortedAfter are the loops whose outcome the next statement sorts.
func sortedAfter(f *File) map[*ast.RangeStmt]bool {
	found := map[*ast.RangeStmt]bool{}
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		var list []ast.Stmt
		switch n := n.(type) {
		case *ast.BlockStmt:
			list = n.List
		case *ast.CaseClause:
			list = n.Body
		}
		for i := range max(0, len(list)-1) {
			loop, isLoop := list[i].(*ast.RangeStmt)
			next, isCall := list[i+1].(*ast.ExprStmt)
			if !isLoop || !isCall {
				continue
			}
			if call, ok := next.X.(*ast.CallExpr); ok {
				pkg, name := selector(call.Fun)
				found[loop] = pkg == "sort" || pkg == "slices" && strings.HasPrefix(name, "Sort")
			}
		}
		return true
	})
	return found
}

var orderWords = regexp.MustCompile(`(?i)\b(order|sorted)\b`)

// orderComments are the lines that a comment about order covers: its own and the one below it.
func (t *Tree) orderComments(f *File) map[int]bool {
	lines := map[int]bool{}
	for _, g := range f.Syntax.Comments {
		if orderWords.MatchString(g.Text()) {
			for l := t.Fset.Position(g.Pos()).Line; l <= t.Fset.Position(g.End()).Line+1; l++ {
				lines[l] = true
			}
		}
	}
	return lines
}

// Environment checks that only programs read flags and the environment.
func (t *Tree) Environment() (out []Violation) {
	const reason = "only cmd reads flags and the environment: two nodes in one process must be able to differ"
	for _, p := range t.Packages {
		if within(p.Path, "cmd") || within(p.Path, "integration") {
			continue
		}
		for _, f := range p.Files {
			if f.Test {
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				switch n := n.(type) {
				case *ast.ImportSpec:
					if target := importPath(n); target == "flag" || strings.HasPrefix(target, "github.com/spf13/") {
						out = append(out, Violation{t.where(n), "imports " + target, reason})
					}
				case *ast.SelectorExpr:
					pkg, name := selector(n)
					if pkg == "os" && (slices.Contains([]string{"Getenv", "LookupEnv", "Environ", "ExpandEnv", "Args"}, name)) {
						out = append(out, Violation{t.where(n), "uses os." + name, reason})
					}
				}
				return true
			})
		}
	}
	return out
}

// Comments checks that each package has exactly one package comment, in the usual form.
func (t *Tree) Comments() (out []Violation) {
	const reason = "a package says in one place what its job is"
	for _, p := range t.Packages {
		want := "Package " + p.Name + " "
		if p.Name == "main" {
			want = "Command " + path.Base(p.Path) + " "
		}
		var found []string
		for _, f := range p.Files {
			if f.Syntax.Doc == nil || f.Generated {
				continue
			}
			found = append(found, f.Name)
			if text := f.Syntax.Doc.Text(); !strings.HasPrefix(text, want) && !f.Test {
				out = append(out, Violation{p.Path + "/" + f.Name, "has a comment that does not begin with " + strconv.Quote(want), reason})
			}
		}
		if len(found) != 1 {
			out = append(out, Violation{p.Path, fmt.Sprintf("has %d package comments %v", len(found), found), reason})
		}
	}
	return out
}

// drawers are names of packages that say nothing of what is inside.
var drawers = []string{"internal", "pkg", "common", "util", "utils", "types", "models", "helpers", "misc", "shared", "base", "lib", "core", "impl"}

// Names checks the names of packages and their directories.
func (t *Tree) Names() (out []Violation) {
	const reason = "a package is a noun of the field; what is shared lives beside its owner"
	for _, p := range t.Packages {
		for _, part := range append(strings.Split(p.Path, "/"), p.Name) {
			if slices.Contains(drawers, part) {
				out = append(out, Violation{p.Path, "is called " + part, reason})
			}
		}
		if p.Name != "main" && p.Name != path.Base(p.Path) {
			out = append(out, Violation{p.Path, "holds package " + p.Name, "an import path ends in the package's name"})
		}
	}
	return out
}

// Generated checks that generated code is marked and alone in its package.
func (t *Tree) Generated() (out []Violation) {
	const reason = "generated code is marked, and in a leaf package of its own, so that it can be regenerated and skipped as a whole"
	for _, p := range t.Packages {
		for _, f := range p.Files {
			byName := strings.HasSuffix(f.Name, ".pb.go")
			inPlace := strings.HasSuffix(p.Name, "pb")
			switch {
			case byName && !f.Generated:
				out = append(out, Violation{p.Path + "/" + f.Name, "is not marked as generated", reason})
			case f.Generated && !inPlace:
				out = append(out, Violation{p.Path + "/" + f.Name, "is generated, in a package whose name does not end in pb", reason})
			case inPlace && !f.Generated && !f.Test && f.Name != "doc.go":
				out = append(out, Violation{p.Path + "/" + f.Name, "is written by hand, in a package of generated code", reason})
			}
		}
	}
	return out
}

// Habits checks small things: no init functions, no sleeping tests, no notes of unfinished work.
func (t *Tree) Habits() (out []Violation) {
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if f.Generated {
				continue
			}
			out = append(out, t.initFunctions(f)...)
			if f.Test {
				out = append(out, t.sleeps(f)...)
			}
			for _, g := range f.Syntax.Comments {
				if unfinished.MatchString(g.Text()) {
					out = append(out, Violation{t.where(g), "notes unfinished work", "what is missing is an issue, not a comment"})
				}
			}
		}
	}
	return out
}

var unfinished = regexp.MustCompile(`\b(TO` + `DO|FIX` + `ME|XX` + `X|HA` + `CK)\b`)

func (t *Tree) initFunctions(f *File) (out []Violation) {
	for _, d := range f.Syntax.Decls {
		if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
			out = append(out, Violation{t.where(fn), "has an init function", "what happens at start is visible in one place, and two nodes fit into one process"})
		}
	}
	return out
}

// sleeps finds sleeping tests. Under synctest a sleep takes no time, and is how time passes.
func (t *Tree) sleeps(f *File) (out []Violation) {
	if slices.ContainsFunc(f.Syntax.Imports, func(s *ast.ImportSpec) bool { return importPath(s) == "testing/synctest" }) {
		return nil
	}
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		if e, ok := n.(*ast.SelectorExpr); ok {
			if pkg, name := selector(e); pkg == "time" && name == "Sleep" {
				out = append(out, Violation{t.where(e), "sleeps in a test", "a sleep is too long on a fast machine and too short on a slow one: wait for what has to happen"})
			}
		}
		return true
	})
	return out
}

// Leaks checks that packages which start goroutines look for leaked ones in their tests.
func (t *Tree) Leaks() (out []Violation) {
	for _, p := range t.Packages {
		if within(p.Path, "integration") {
			continue // for tests of whole programs, whose goroutines end with them
		}
		starts, checks := "", false
		for _, f := range p.Files {
			if f.Test {
				checks = checks || slices.ContainsFunc(f.Syntax.Imports, func(s *ast.ImportSpec) bool { return importPath(s) == "go.uber.org/goleak" })
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				if g, ok := n.(*ast.GoStmt); ok && starts == "" {
					starts = t.where(g)
				}
				return true
			})
		}
		if starts != "" && !checks {
			out = append(out, Violation{starts, p.Path + " starts goroutines and no test of it uses goleak", "every goroutine has an owner that waits for it"})
		}
	}
	return out
}

// judgedOnly are settings that nothing but validation reads: they say what this version can be.
var judgedOnly = []string{"DefaultReplication", "Roles", "Insecure", "RecordSizeLimit", "MetadataClient", "Addresses", "TLS", "Mode"}

// Knobs checks that each setting of nodes/node is used by somebody, there or in cmd.
func (t *Tree) Knobs() (out []Violation) {
	used := map[string]bool{}
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if p.Path != "nodes/node" && !within(p.Path, "cmd") || f.Test || f.Name == "validate.go" {
				continue
			}
			ast.Inspect(f.Syntax, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					used[s.Sel.Name] = true
				}
				return true
			})
		}
	}
	for _, p := range t.Packages {
		for _, f := range p.Files {
			if p.Path == "nodes/node" {
				out = append(out, t.idleKnobs(f, used)...)
			}
		}
	}
	return out
}

func (t *Tree) idleKnobs(f *File, used map[string]bool) (out []Violation) {
	ast.Inspect(f.Syntax, func(n ast.Node) bool {
		field, ok := n.(*ast.Field)
		if !ok || field.Tag == nil || !strings.Contains(field.Tag.Value, `key:"`) {
			return true
		}
		for _, name := range field.Names {
			if !used[name.Name] && !slices.Contains(judgedOnly, name.Name) {
				out = append(out, Violation{t.where(name), name.Name + " is a setting that nothing reads", "a knob that turns nothing is a lie to who turns it"})
			}
		}
		return true
	})
	return out
}

// foreign are traces of the machine on which something was written. Each is a part of a pattern, joined here so that this
// file does not match itself.
var foreign = regexp.MustCompile(`(^|[^\w.~/-])/(` + `root|home/\w+|Users/\w+|work|workspace` + `)/[\w.]|` +
	`\b(proxy|registry|mirror)\.[a-z]+\.(org|com|io)\b`)

// Traces checks all text files of the repository for paths and hosts that exist only where they were written.
func (t *Tree) Traces() ([]Violation, error) {
	cmd := exec.Command("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
	cmd.Dir = t.Root
	listed, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("list the files of the repository: %w", err)
	}
	var out []Violation
	for name := range strings.SplitSeq(strings.TrimRight(string(listed), "\x00"), "\x00") {
		data, err := os.ReadFile(filepath.Join(t.Root, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // deleted, not yet committed
		}
		if err != nil {
			return nil, err
		}
		out = append(out, traces(name, data)...)
	}
	return out, nil
}

func traces(name string, data []byte) (out []Violation) {
	if bytes.IndexByte(data[:min(len(data), 8000)], 0) >= 0 {
		return nil // not text
	}
	n := 0
	for line := range bytes.Lines(data) {
		n++
		if found := foreign.Find(line); found != nil {
			out = append(out, Violation{fmt.Sprintf("%s:%d", name, n), fmt.Sprintf("has %q", found), "the repository works on every machine, and names none"})
		}
	}
	return out
}
