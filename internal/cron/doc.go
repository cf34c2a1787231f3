// Package cron reads schedules as crontab has them and says when they are due next. It is pure: the
// time arrives as an argument.
package cron
