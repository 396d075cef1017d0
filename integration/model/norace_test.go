//go:build !race

package model

// defaultPrograms is how many programs run unless -model.n says otherwise.
const defaultPrograms = 2000
