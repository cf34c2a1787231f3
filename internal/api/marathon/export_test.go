package marathon

import "context"

// Settle is one look of Run.
func (a *API) Settle(ctx context.Context) { a.settle(ctx) }
