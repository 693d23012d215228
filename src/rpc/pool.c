/* SPDX-License-Identifier: Apache-2.0 */
#include "base/cleanup.h"
#include "base/thread.h"
#include "rpc/rpc_internal.h"

static void *work(void *context)
{
    struct pool *pool = context;
    pthread_mutex_lock(&pool->mutex);
    for (;;) {
        struct task *task = pool->head;
        if (!task && pool->stopping)
            break;
        if (!task) {
            pthread_cond_wait(&pool->changed, &pool->mutex);
            continue;
        }
        pool->head = task->next;
        if (!pool->head)
            pool->tail = &pool->head;
        pthread_mutex_unlock(&pool->mutex);
        task_run(task);
        pthread_mutex_lock(&pool->mutex);
    }
    pthread_mutex_unlock(&pool->mutex);
    return NULL;
}

int pool_start(struct pool *pool, unsigned count, struct error *err)
{
    pthread_mutex_init(&pool->mutex, NULL);
    pthread_cond_init(&pool->changed, NULL);
    pool->tail = &pool->head;
    for (; pool->count < count && pool->count < RPC_WORKERS_MAX; pool->count++) {
        int r = thread_start(&pool->threads[pool->count], "rpc-worker", work, pool, err);
        if (r < 0) {
            pool_stop(pool);
            return r;
        }
    }
    return 0;
}

void pool_add(struct pool *pool, struct task *task)
{
    MUTEX_GUARD(guard, &pool->mutex);
    task->next = NULL;
    *pool->tail = task;
    pool->tail = &task->next;
    pthread_cond_signal(&pool->changed);
}

void pool_stop(struct pool *pool)
{
    pthread_mutex_lock(&pool->mutex);
    pool->stopping = true;
    pthread_cond_broadcast(&pool->changed);
    pthread_mutex_unlock(&pool->mutex);
    for (unsigned i = 0; i < pool->count; i++)
        pthread_join(pool->threads[i], NULL);
    pthread_cond_destroy(&pool->changed);
    pthread_mutex_destroy(&pool->mutex);
}
