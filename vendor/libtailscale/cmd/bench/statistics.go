package main

import (
	"cmp"
	"slices"
)

// spread is what is left of the values of several rounds.
type spread struct {
	Min    float64 `json:"min"`
	Median float64 `json:"median"`
	Max    float64 `json:"max"`
	Count  int     `json:"count"`
}

// spreadOf is the zero spread when there are no values.
func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	sorted := slices.Sorted(slices.Values(values))
	middle := sorted[len(sorted)/2]
	if len(sorted)%2 == 0 {
		middle = (sorted[len(sorted)/2-1] + middle) / 2
	}
	return spread{Min: sorted[0], Median: middle, Max: sorted[len(sorted)-1], Count: len(sorted)}
}

// quantile is the value of sorted ones that a part of them does not exceed, by
// nearest rank; zero when there are none.
func quantile[T cmp.Ordered](sorted []T, part float64) T {
	if len(sorted) == 0 {
		var zero T
		return zero
	}
	rank := int(part * float64(len(sorted)))
	if float64(rank) < part*float64(len(sorted)) {
		rank++
	}
	return sorted[min(max(rank-1, 0), len(sorted)-1)]
}

// turn is the order for the n-th time that all are measured: everyone starts
// once, and of any two neighbours each goes before the other every second time.
func turn[T any](all []T, n int) []T {
	if len(all) == 0 {
		return nil
	}
	by := n % len(all)
	order := append(slices.Clone(all[by:]), all[:by]...)
	if n%2 == 1 {
		slices.Reverse(order)
	}
	return order
}
