package sim

func newPebbleDisk(w *world) storage { return newDisk() }
