// Package files reads and writes trees below a root directory as tar streams. The root is a
// container's: it may change meanwhile, and be hostile. Every path, symbolic links, absolute ones and
// ".." too, is resolved by the kernel within the root (openat2), so that nothing outside is reached,
// whatever happens between two steps.
package files
