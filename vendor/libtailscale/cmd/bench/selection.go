package main

import (
	"fmt"
	"slices"
	"strings"
)

// words are all that -only understands.
func words() string {
	var all []string
	for _, c := range contenders {
		for _, word := range []string{c.subject, c.name} {
			if !slices.Contains(all, word) {
				all = append(all, word)
			}
		}
	}
	all = append(all, "l4", "tls", "http")
	for _, p := range phases {
		all = append(all, string(p))
	}
	return strings.Join(all, ", ")
}

// choose reads -only: servers, jobs and phases, of each kind all that are named
// or, when none is, all there are.
func choose(only string) ([]contender, map[phase]bool, error) {
	var names, jobs []string
	chosenPhases := map[phase]bool{}
	for word := range strings.SplitSeq(only, ",") {
		word = strings.ToLower(strings.TrimSpace(word))
		switch {
		case word == "":
		case word == "l4" || word == "tls" || word == "http":
			jobs = append(jobs, word)
		case slices.Contains(phases, phase(word)):
			chosenPhases[phase(word)] = true
		case slices.ContainsFunc(contenders, func(c contender) bool { return c.name == word || c.subject == word }):
			names = append(names, word)
		default:
			return nil, nil, fmt.Errorf("-only does not know %q; it knows %s", word, words())
		}
	}
	var chosen []contender
	for _, c := range contenders {
		named := slices.Contains(names, c.name) || slices.Contains(names, c.subject)
		wanted := named || len(names) == 0
		ofJob := len(jobs) == 0 || c.job == jobNone || slices.Contains(jobs, strings.ToLower(string(c.job)))
		if wanted && ofJob {
			chosen = append(chosen, c)
		}
	}
	if len(chosenPhases) == 0 {
		for _, p := range phases {
			chosenPhases[p] = true
		}
	}
	if len(chosen) == 0 {
		return nil, nil, fmt.Errorf("-only %s leaves no server: none of those named does that job", only)
	}
	return chosen, chosenPhases, nil
}

func measures(chosen []contender, subject string) bool {
	return slices.ContainsFunc(chosen, func(c contender) bool { return c.subject == subject })
}

func without(chosen []contender, subject string) []contender {
	return slices.DeleteFunc(slices.Clone(chosen), func(c contender) bool { return c.subject == subject })
}
