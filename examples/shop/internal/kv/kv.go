// Package kv opens the shop's Redis: connections are made when they are needed, and every
// command has a short limit.
package kv

import (
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/tutti-run/tutti/examples/shop/internal/service"
)

// Jobs is the list of orders' IDs that the worker has yet to look at.
const Jobs = "shop:jobs"

// Open makes a client of REDIS (redis:6379). It does not connect yet. A command ends within a
// second or so, also when nothing answers; it is tried once more when its connection broke.
func Open() *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr:                     service.Setting("REDIS", "redis:6379"),
		DialTimeout:              time.Second,
		DialerRetries:            1,
		ReadTimeout:              450 * time.Millisecond,
		WriteTimeout:             450 * time.Millisecond,
		PoolTimeout:              500 * time.Millisecond,
		MaxRetries:               1,
		MinRetryBackoff:          5 * time.Millisecond,
		MaxRetryBackoff:          20 * time.Millisecond,
		PoolSize:                 16,
		ConnMaxIdleTime:          time.Minute,
		ContextTimeoutEnabled:    true,
		DisableIdentity:          true,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
}
