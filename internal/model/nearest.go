package model

import (
	"iter"
	"strings"
)

// Nearest finds the word that somebody may have meant who wrote another; "" when there is none.
func Nearest(word string, among iter.Seq[string]) string {
	best, least := "", max(2, len(word)/3)+1
	for candidate := range among {
		d := distance(strings.ToLower(word), strings.ToLower(candidate))
		if d < least || d == least && candidate < best {
			best, least = candidate, d
		}
	}
	if len(word) < 3 && least > 1 {
		return ""
	}
	return best
}

// distance counts the letters to insert, remove, replace or swap between two words.
func distance(a, b string) int {
	rows := [3][]int{make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)}
	for j := range rows[1] {
		rows[1][j] = j
	}
	for i := range len(a) {
		before, last, now := rows[0], rows[1], rows[2]
		now[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			now[j+1] = min(last[j]+cost, last[j+1]+1, now[j]+1)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				now[j+1] = min(now[j+1], before[j-1]+1)
			}
		}
		rows = [3][]int{last, now, before}
	}
	return rows[1][len(b)]
}
