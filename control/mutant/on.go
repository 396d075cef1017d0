//go:build mutants

package mutant

import "sync/atomic"

// Compiled says whether mutants can be switched on in this build.
const Compiled = true

var (
	active Kind
	noise  atomic.Uint64
)

// Is reports whether the program has this bug.
func Is(k Kind) bool { return active == k }

// Set switches one bug on and the others off. Nothing of the program may run meanwhile.
func Set(k Kind) { active = k }

// Noise differs from call to call; it stands for a clock that apply must not read.
func Noise() uint64 { return noise.Add(1) }
