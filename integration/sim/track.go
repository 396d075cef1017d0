package sim

import (
	"fmt"
	"io"
)

// track is the record of the bugs that the simulator has found: the seed that showed it, in the world and
// with the build of that time, and what it was. DESIGN.md tells the fixes. Later changes of the simulator make
// other runs of the same seeds; they are kept because they cost little and because a seed that once was
// rich in faults is likely to be again.
var track = []struct {
	World string
	Seed  uint64
	What  string
}{
	{"log", 1, "a reader took a sealed tail that it found for the end of the segment; sequencers spun for a server that had everything"},
	{"log", 9, "finders spun for a server that had lost its records"},
	{"core", 24, "rich in leaders that do not know that they were replaced"},
	{"core", 1795633492970952258, "an invocation whose failure was lost with its leader, and that ended well: what it called was not counted"},
}

// RunTrack runs the seeds of the track record; it returns whether none of them fails.
func RunTrack(out io.Writer) bool {
	ok := true
	for _, t := range track {
		o := WorldOf(t.World, t.Seed, 0)
		if r := Run(o); r.Failure != nil {
			report(out, o, r)
			ok = false
			continue
		}
		fmt.Fprintf(out, "%s seed %d holds: %s\n", t.World, t.Seed, t.What)
	}
	return ok
}
