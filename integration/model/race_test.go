//go:build race

package model

// defaultPrograms is smaller with the race detector, which makes the endpoints several times slower.
const defaultPrograms = 300
