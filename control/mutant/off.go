//go:build !mutants

package mutant

// Compiled says whether mutants can be switched on in this build.
const Compiled = false

// Is reports whether the program has this bug.
func Is(Kind) bool { return false }

// Set switches one bug on; this build has none to switch on.
func Set(Kind) { panic("mutant: this build has no mutants, build with -tags mutants") }

// Noise differs from call to call; it stands for a clock that apply must not read.
func Noise() uint64 { return 0 }
