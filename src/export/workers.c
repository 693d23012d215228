/* SPDX-License-Identifier: Apache-2.0 */
#include "export/workers.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "base/thread.h"
#include "block/queue.h"

struct work_list {
    struct work *first, **last;
};

struct workers {
    struct workers_options o;
    int fd;
    pthread_mutex_t mutex; /* guards what follows */
    pthread_cond_t job_there, finish_there;
    struct work_list jobs, finishes;
    struct work *returned;
    bool jobs_end, finishes_end;
    atomic_bool armed;
    pthread_t finisher, *threads;
    bool finisher_runs;
    unsigned threads_run;
};

static void list_init(struct work_list *l)
{
    l->first = NULL;
    l->last = &l->first;
}

static void list_add(struct work_list *l, struct work *w)
{
    w->next = NULL;
    *l->last = w;
    l->last = &w->next;
}

static struct work *list_take(struct work_list *l)
{
    struct work *w = l->first;
    if (w && !(l->first = w->next))
        l->last = &l->first;
    return w;
}

void workers_wake(struct workers *w)
{
    if (eventfd_write(w->fd, 1) < 0)
        log_error(w->o.log, "%s: cannot wake its thread: %s", w->o.name, strerrordesc_np(errno));
}

/* Works off a list until the end. */
static void serve(struct workers *w, struct work_list *list, pthread_cond_t *there, const bool *ending,
                  bool (*act)(void *, struct work *))
{
    pthread_mutex_lock(&w->mutex);
    for (;;) {
        struct work *work = list_take(list);
        if (!work && *ending)
            break;
        if (!work) {
            pthread_cond_wait(there, &w->mutex);
            continue;
        }
        pthread_mutex_unlock(&w->mutex);
        bool ended = act(w->o.context, work);
        pthread_mutex_lock(&w->mutex);
        if (!ended)
            continue;
        work->next = w->returned;
        w->returned = work;
        if (atomic_exchange(&w->armed, false))
            workers_wake(w);
    }
    pthread_mutex_unlock(&w->mutex);
}

static void *job_main(void *context)
{
    struct workers *w = context;
    serve(w, &w->jobs, &w->job_there, &w->jobs_end, w->o.job);
    return NULL;
}

static void *finisher_main(void *context)
{
    struct workers *w = context;
    serve(w, &w->finishes, &w->finish_there, &w->finishes_end, w->o.finish);
    return NULL;
}

static void hand_over(struct workers *w, struct work_list *list, pthread_cond_t *there, struct work *work)
{
    pthread_mutex_lock(&w->mutex);
    list_add(list, work);
    pthread_cond_signal(there);
    pthread_mutex_unlock(&w->mutex);
}

void workers_job(struct workers *w, struct work *work)
{
    hand_over(w, &w->jobs, &w->job_there, work);
}

void workers_finish(struct workers *w, struct work *work)
{
    hand_over(w, &w->finishes, &w->finish_there, work);
}

bool workers_go_on(struct workers *w, int outcome, struct work *work)
{
    if (outcome == BLOCK_STEP_BLOCKS)
        workers_finish(w, work);
    else if (outcome == BLOCK_STEP_AGAIN)
        workers_job(w, work);
    else
        return false;
    return true;
}

struct work *workers_take_returned(struct workers *w)
{
    pthread_mutex_lock(&w->mutex);
    struct work *first = w->returned;
    w->returned = NULL;
    pthread_mutex_unlock(&w->mutex);
    return first;
}

int workers_fd(const struct workers *w)
{
    return w->fd;
}

void workers_arm(struct workers *w, bool armed)
{
    atomic_store(&w->armed, armed);
}

void workers_drain(struct workers *w)
{
    eventfd_t ignored;
    while (eventfd_read(w->fd, &ignored) == 0)
        ;
}

static int start_threads(struct workers *w, struct error *err)
{
    char name[16];
    int r = 0;
    snprintf(name, sizeof name, "%.8s-job", w->o.name);
    for (; w->threads_run < w->o.threads && r == 0; w->threads_run += r == 0)
        r = thread_start(&w->threads[w->threads_run], name, job_main, w, err);
    snprintf(name, sizeof name, "%.8s-finish", w->o.name);
    if (r == 0)
        r = thread_start(&w->finisher, name, finisher_main, w, err);
    w->finisher_runs = r == 0;
    return r;
}

int workers_start(const struct workers_options *options, struct workers **ret, struct error *err)
{
    struct workers *w = calloc(1, sizeof *w);
    if (!w || !(w->threads = calloc(options->threads, sizeof *w->threads))) {
        free(w);
        return error_errno(err, -ENOMEM, "cannot start %u threads", options->threads);
    }
    w->o = *options;
    pthread_mutex_init(&w->mutex, NULL);
    pthread_cond_init(&w->job_there, NULL);
    pthread_cond_init(&w->finish_there, NULL);
    list_init(&w->jobs);
    list_init(&w->finishes);
    w->fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int r = w->fd < 0 ? error_errno(err, -errno, "cannot make an eventfd") : start_threads(w, err);
    if (r < 0) {
        workers_free(w);
        return r;
    }
    *ret = w;
    return 0;
}

/* Once the list is worked off. */
static void end_threads(struct workers *w, bool *ending, pthread_cond_t *there, const pthread_t *threads, unsigned count)
{
    pthread_mutex_lock(&w->mutex);
    *ending = true;
    pthread_cond_broadcast(there);
    pthread_mutex_unlock(&w->mutex);
    for (unsigned i = 0; i < count; i++)
        pthread_join(threads[i], NULL);
}

void workers_free(struct workers *w)
{
    if (!w)
        return;
    end_threads(w, &w->finishes_end, &w->finish_there, &w->finisher, w->finisher_runs); /* first: it hands over jobs, and no job to it */
    end_threads(w, &w->jobs_end, &w->job_there, w->threads, w->threads_run);
    pthread_cond_destroy(&w->job_there);
    pthread_cond_destroy(&w->finish_there);
    pthread_mutex_destroy(&w->mutex);
    if (w->fd >= 0)
        close(w->fd);
    free(w->threads);
    free(w);
}
