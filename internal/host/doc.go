// Package host looks at the machine that a node is: what is left of its memory, disk and process numbers, what its
// kernel can do, and whether its clock is in step. It changes nothing that outlives a look.
package host
