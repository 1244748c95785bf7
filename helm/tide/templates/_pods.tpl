{{- define "tide.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
fsGroupChangePolicy: OnRootMismatch
seccompProfile:
  type: RuntimeDefault
{{- end -}}

{{- define "tide.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end -}}

{{- define "tide.pullSecrets" -}}
{{- with .Values.images.pullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{- define "tide.storageEnvFrom" -}}
{{- with .Values.storage.credentialsSecretName }}
envFrom:
  - secretRef:
      name: {{ . }}
{{- end }}
{{- end -}}

{{/*
Bytes of Ray's object store: 90% of the shared memory. By default Ray takes 30% of the pod's memory, and uses the
disk where shared memory is smaller. Argument: the size of the shared memory, as 4Gi.
*/}}
{{- define "tide.objectStoreBytes" -}}
{{- $unit := regexFind "[MGT]i$" . -}}
{{- $bytes := get (dict "Mi" 1048576 "Gi" 1073741824 "Ti" 1099511627776) $unit -}}
{{- div (mul (trimSuffix $unit . | int64) $bytes 9) 10 -}}
{{- end -}}

{{/* The pod of a Ray node. Argument: dict root component purpose image resources node gpus gpuResource serviceAccount */}}
{{- define "tide.rayPod" -}}
{{- $root := .root -}}
metadata:
  labels:
    {{- include "tide.labels" . | nindent 4 }}
    tide.dev/purpose: {{ .purpose }}
  {{- with $root.Values.ray.podAnnotations }}
  annotations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
spec:
  serviceAccountName: {{ .serviceAccount }}
  automountServiceAccountToken: {{ and (eq .component "ray-head") $root.Values.ray.autoscaling.enabled }}
  enableServiceLinks: false
  {{- include "tide.pullSecrets" $root | nindent 2 }}
  securityContext:
    {{- include "tide.podSecurity" $root | nindent 4 }}
  terminationGracePeriodSeconds: 120
  containers:
    - name: {{ .component }}
      image: {{ include "tide.image" (dict "root" $root "image" .image) }}
      imagePullPolicy: {{ .image.pullPolicy }}
      securityContext:
        {{- include "tide.containerSecurity" $root | nindent 8 }}
      env:
        - name: TIDE_CACHE
          value: /var/cache/tide
        - name: HF_HOME
          value: /var/cache/tide/hub
        - name: RAY_USAGE_STATS_ENABLED
          value: "0"
        {{- with $root.Values.ray.extraEnv }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- include "tide.storageEnvFrom" $root | nindent 6 }}
      ports:
        {{- if eq .component "ray-head" }}
        - {name: gcs-server, containerPort: 6379}
        - {name: dashboard, containerPort: 8265}
        - {name: client, containerPort: 10001}
        {{- end }}
        - {name: metrics, containerPort: 8080}
      resources:
        requests:
          {{- toYaml .resources.requests | nindent 10 }}
          {{- if .gpus }}
          {{ .gpuResource }}: {{ .gpus }}
          {{- end }}
        limits:
          {{- toYaml .resources.limits | nindent 10 }}
          {{- if .gpus }}
          {{ .gpuResource }}: {{ .gpus }}
          {{- end }}
      volumeMounts:
        - {name: shared-memory, mountPath: /dev/shm}
        - {name: scratch, mountPath: /tmp}
        - {name: models, mountPath: /var/cache/tide}
        {{- if not $root.Values.storage.url }}
        - {name: storage, mountPath: /var/lib/tide/storage}
        {{- end }}
  volumes:
    # Ray's object store: arrays pass between the processes of a node without a copy.
    - name: shared-memory
      emptyDir:
        medium: Memory
        sizeLimit: {{ .node.sharedMemory }}
    - name: scratch
      emptyDir:
        sizeLimit: {{ .node.scratch }}
    - name: models
      {{- if $root.Values.modelCache.enabled }}
      persistentVolumeClaim:
        claimName: {{ include "tide.modelCacheClaim" $root }}
      {{- else }}
      emptyDir: {}
      {{- end }}
    {{- if not $root.Values.storage.url }}
    - name: storage
      persistentVolumeClaim:
        claimName: {{ include "tide.storageClaim" $root }}
    {{- end }}
  {{- with .node.nodeSelector }}
  nodeSelector:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with .node.tolerations }}
  tolerations:
    {{- toYaml . | nindent 4 }}
  {{- end }}
{{- end -}}
